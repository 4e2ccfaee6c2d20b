"""Metrics of a run: reconstruction quality, likelihood, and comparison of samples with real images."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.autoencoder.likelihood import VARIANCE_IMAGES, pixel_nats, pixel_variance
from vqvae2.autoencoder.usage import code_counts, usage_of
from vqvae2.evaluation.classifier import Classifier, LabelledBatch, Seen, Trained, new_classifier, train_classifier
from vqvae2.evaluation.fidelity import FEWEST_IMAGES, fidelity, frechet_distance, precision_and_recall
from vqvae2.evaluation.pixels import measures_for
from vqvae2.evaluation.rejection import best_of_each_class, confidence
from vqvae2.evaluation.subject import Subject
from vqvae2.prior.likelihood import nats_per_code
from vqvae2.run.precision import widest_float
from vqvae2.training.window import gather_shares, share_of, validation_window

KEPT_FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.1)

Network = Callable[[Tensor], Seen]


@torch.no_grad()
def reconstruction(subject: Subject) -> dict[str, Any]:
    """Compute the sections `reconstruction` and `codebook` over all held-out images."""
    autoencoder, accelerator = subject.generator.autoencoder, subject.accelerator
    images = subject.images.validation
    measures = measures_for(subject.trained.height_width, accelerator.device)
    grids = subject.trained.grids
    counts = [torch.zeros(x.codebook_size, dtype=torch.long, device=accelerator.device) for x in grids]
    ways = {"all": len(grids), "coarsest_alone": 1}
    rows = [
        torch.zeros(0, len(ways) * len(measures), dtype=widest_float(accelerator.device), device=accelerator.device)
    ]
    mine = share_of(list(range(len(images))), accelerator)
    with subject.progress("reconstruction", mine) as bar:
        for batch in subject.real(images, subject.in_order(mine)):
            originals = batch.images.to(accelerator.device)
            with accelerator.autocast():
                codes = autoencoder.encode(originals)
            metrics = []
            for levels in ways.values():
                decoded = subject.decode({name: codes[name] for name in autoencoder.names[:levels]})
                metrics += [measure(originals, decoded) for measure in measures.values()]
            rows.append(torch.stack(metrics, dim=1))
            for count, name in zip(counts, autoencoder.names, strict=True):
                count += code_counts(codes[name], len(count))
            bar.update(len(originals))
    means = gather_shares(torch.cat(rows), len(images), accelerator).mean(0).view(len(ways), len(measures)).tolist()
    by_way = {way: dict(zip(measures, row, strict=True)) for way, row in zip(ways, means, strict=True)}
    missing = {name: None for name in ("ssim", "lpips") if name not in measures}
    alone = {"coarsest_alone": by_way["coarsest_alone"]} if len(grids) > 1 else {}
    usages = {x.name: usage_of(accelerator.reduce(count)) for x, count in zip(grids, counts, strict=True)}
    return {
        "reconstruction": {**by_way["all"], **missing, "images": len(images), **alone},
        "codebook": {name: usage._asdict() for name, usage in usages.items()},
    }


@torch.no_grad()
def likelihood(subject: Subject) -> dict[str, Any]:
    """Compute the section `likelihood`: of codes given labels, of pixels given codes, and of both together.

    `bits_per_dimension` is an upper bound on -log2 p(x | label), since it comes from log p(x, codes of x | label).
    """
    accelerator, batch_size = subject.accelerator, subject.config.evaluation.batch_size
    held_out, train = subject.codes["validation"], subject.codes["train"]
    sets = {
        "nats_per_code": (held_out, list(range(len(held_out)))),
        "train_nats_per_code": (train, validation_window(len(train), len(held_out))),
    }
    levels = {
        name: {key: nats_per_code(prior, *sets[key], batch_size, accelerator) for key in sets}
        for name, prior in subject.generator.priors.items()
    }
    grids = subject.trained.grids
    coded = sum(levels[x.name]["nats_per_code"] * x.height * x.width for x in grids) / math.log(2)
    plain = sum(math.log2(x.codebook_size) * x.height * x.width for x in grids)
    height, width = subject.trained.height_width
    dimensions = subject.trained.channels * height * width

    variance = subject.trained.pixel_variance
    if variance is None:  # a run of an earlier version
        workers = subject.config.images.workers
        autoencoder = subject.generator.autoencoder
        variance = pixel_variance(autoencoder, subject.images.train, batch_size, workers, accelerator)
    nats = _pixel_nats(subject, variance)
    pixel_bits = nats.mean().item() / math.log(2) / dimensions
    return {
        **levels,
        "code_bits_per_dimension": coded / dimensions,
        "pixel_bits_per_dimension": pixel_bits,
        "bits_per_dimension": coded / dimensions + pixel_bits,
        "pixel_variance": variance,
        "bits_per_image": {"pixels": 8 * dimensions, "codes": plain, "coded_codes": coded},
        "compression": {"codes": 8 * dimensions / plain, "coded_codes": 8 * dimensions / coded},
        "images": {
            "held_out": len(held_out),
            "train": len(sets["train_nats_per_code"][1]),
            "variance": min(len(subject.images.train), VARIANCE_IMAGES),
        },
    }


def _pixel_nats(subject: Subject, variance: float) -> Tensor:
    """-log p(x | z_q(x)) of each held-out image in nats."""
    accelerator, images = subject.accelerator, subject.images.validation
    everything = list(range(len(images)))
    rows = [torch.zeros(0, dtype=widest_float(accelerator.device), device=accelerator.device)]
    for batch in subject.real(images, subject.in_order(share_of(everything, accelerator))):
        originals = batch.images.to(accelerator.device)
        with accelerator.autocast():
            means = subject.generator.autoencoder(originals).images  # not rounded to 8 bits
        rows.append(pixel_nats(originals, means, variance))
    return gather_shares(torch.cat(rows), len(images), accelerator)


def trained_classifier(
    subject: Subject, name: str, num_images: int, batches: Callable[[Any], Iterable[LabelledBatch]], directory: Path
) -> Trained:
    """Train a classifier on one kind of images.

    Args:
        subject: the run.
        name: name of the kind, for messages.
        num_images: number of images of that kind.
        batches: takes an order, returns the batches of these images in that order.
        directory: folder of the classifier.
    """
    config, accelerator = subject.config, subject.accelerator
    accelerator.print(f"classifier trained on {name}: {num_images} images")
    return train_classifier(
        lambda: new_classifier(config.evaluation, subject.trained.height_width, len(subject.classes), config.seed),
        lambda step: iter(batches(subject.training_order(num_images, step))),
        lambda classifier: accuracy(subject, classifier),
        config.evaluation,
        config.images.horizontal_flip,
        directory,
        config.seed,
        accelerator,
    )


@torch.no_grad()
def accuracy(subject: Subject, classifier: Classifier) -> float:
    """Accuracy of a classifier on the real held-out images."""
    images = subject.images.validation
    everything = list(range(len(images)))
    batches = subject.real(images, subject.in_order(share_of(everything, subject.accelerator)))
    seen = see(subject, classifier, batches, len(images))
    return (seen.logits.argmax(1) == torch.tensor(images.labels)).double().mean().item()


@torch.no_grad()
def see(subject: Subject, network: Network, batches: Iterable[LabelledBatch], total: int) -> Seen:
    """Outputs of a network for `total` images, gathered on every process; `batches` are this process's share."""
    accelerator = subject.accelerator
    parts = []
    for batch in batches:
        with accelerator.autocast():
            parts.append(Seen(*(x.float() for x in network(batch.images.to(accelerator.device)))))
    if not parts:  # this process has no images: there are more processes than images
        parts = [Seen(*(x[:0].float() for x in network(_blank(subject))))]
    return Seen(*(gather_shares(torch.cat(x), total, accelerator).cpu() for x in zip(*parts, strict=True)))


def _blank(subject: Subject) -> Tensor:
    shape = (1, subject.trained.channels, *subject.trained.height_width)
    return torch.zeros(shape, dtype=torch.uint8, device=subject.accelerator.device)


def distances(samples: Seen, real: Seen, held_out: Seen, reconstructions: Seen) -> dict[str, Any]:
    """Metrics of samples against training images, and the Frechet distance of reconstructions from held-out images."""
    return {
        **fidelity(samples, real),
        "reconstruction_fid": frechet_distance(reconstructions.features, held_out.features),
    }


def rejection(samples: Seen, labels: Tensor, real: Seen) -> list[dict[str, float]]:
    """Precision and recall after rejection sampling, one row for each of KEPT_FRACTIONS with enough images.

    Args:
        samples: outputs for the samples of the classifier trained on real images.
        labels: requested classes of the samples, (N,).
        real: outputs of the same classifier for training images.
    """
    rows = []
    for fraction in KEPT_FRACTIONS:
        kept = best_of_each_class(confidence(samples.logits, labels), labels, fraction)
        if min(len(kept), len(real.features)) >= FEWEST_IMAGES:
            metrics = precision_and_recall(samples.features[kept], real.features)
            rows.append({"fraction": fraction, "samples": len(kept), **metrics})
    return rows
