"""The figures and pictures of one trained model of the family."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.autoencoder.usage import code_counts, usage_of
from vqvae2.evaluation.classifier import Classifier, LabelledBatch, Seen, Trained, new_classifier, train_classifier
from vqvae2.evaluation.fidelity import frechet_distance
from vqvae2.family.config import FamilyConfig
from vqvae2.family.data import InMemory, numbered_batches
from vqvae2.family.member import Member
from vqvae2.family.pictures import save_pictures
from vqvae2.family.training import means, model_dir, squared_errors
from vqvae2.images.image_sets import NO_LABEL, ImageSet, Splits
from vqvae2.images.loading import load_batches
from vqvae2.run.directory import make_dir
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.precision import widest_float
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.metrics_log import read_metrics
from vqvae2.training.order import Item, StepOrder, in_order
from vqvae2.training.window import gather_shares, share_of, validation_window

ACTIVE_VARIANCE = 0.01  # smallest variance of the posterior mean of an active unit (Burda et al. 2016, section 5.2)
MEANS = ("reconstruction_mse", "distortion", "rate", "bound", "exchange_loss")  # the last four in nats per image


@dataclass
class Judge:
    """The classifier that judges samples, and its features of training images, which are the same for all models."""

    classifier: Classifier
    config: FamilyConfig
    splits: Splits
    accelerator: Accelerator

    @cached_property
    def real_features(self) -> Tensor:
        """Features (N, F) of at most `num_samples` training images, from all processes together."""
        window = validation_window(len(self.splits.train), self.config.evaluation.num_samples)
        return see(self.classifier, self.splits.train, window, self.config, self.accelerator).features


def figures_of(
    member: Member,
    name: str,
    config: FamilyConfig,
    splits: Splits,
    judge: Judge | None,
    directory: Path,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """All figures of a model; None where the model or the images define none. Saves the pictures to `directory`."""
    found = {**nats(member, config, splits, accelerator), **units(member, config, splits, accelerator)}
    samples = draw_samples(member, config, splits, accelerator)
    fid = cas = recognised = None
    if judge is not None:
        seen = see(judge.classifier, samples, list(range(len(samples))), config, accelerator)
        fid = frechet_distance(seen.features, judge.real_features)
        if member.conditional:
            told = seen.logits.argmax(1) == torch.tensor(samples.labels)
            recognised = told.double().mean().item()
            with torch.enable_grad():
                cas = classifier_on(samples, splits, config, directory / "classifier_samples", accelerator).accuracy
    with refusals_reach_all(accelerator):
        if accelerator.is_main_process:
            save_pictures(member, splits, samples, directory, accelerator)
    lines = read_metrics(model_dir(config, name) / "metrics.jsonl")
    return {
        "parameters": sum(x.numel() for x in (member.buffers() if member.closed_form else member.parameters())),
        **found,
        "bits_per_dimension": None if found["bound"] is None else _bits(found["bound"], member),
        "fid": fid,
        "classification_accuracy": cas,
        "samples_recognised": recognised,
        "seconds": sum(x.get("seconds", 0.0) for x in lines if x["split"] == "train"),
    }


def _bits(nats_per_image: float, member: Member) -> float:
    return nats_per_image / math.log(2) / member.setting.dimensions


def nats(member: Member, config: FamilyConfig, splits: Splits, accelerator: Accelerator) -> dict[str, float | None]:
    """Reconstruction error of pixels in [-1, 1], and rate, distortion, bound and exchange loss in nats per image."""
    window = validation_window(len(splits.validation), config.test_images)

    def values() -> Iterator[dict[str, Tensor | None]]:
        for number, batch in numbered_batches(splits.validation, window, config.evaluation.batch_size, accelerator):
            generator = keyed_generator(config.seed, "test", number)
            x = (batch.images, batch.labels)
            bound = member.bound(*x, generator)
            yield {
                "reconstruction_mse": squared_errors(member, batch),
                "rate": bound and bound.rate,
                "distortion": bound and bound.distortion,
                "bound": member.nll(*x, generator),
                "exchange_loss": member.exchange_loss(*x, generator),
            }

    return means(MEANS, values(), accelerator)


def units(member: Member, config: FamilyConfig, splits: Splits, accelerator: Accelerator) -> dict[str, Any]:
    """Active units of a model with continuous latents, and usage and perplexity of the codebooks of one with codes."""
    window = validation_window(len(splits.validation), config.test_images)
    one = next(load_batches(splits.validation, [in_order(window[:1], 1)[0]], 0))  # this process may have no batch
    known = member.posterior_means(one.images.to(accelerator.device), one.labels.to(accelerator.device))
    moments: Tensor | None = None
    if known is not None:
        moments = torch.zeros(2, known.shape[1], dtype=widest_float(known.device), device=known.device)
    counts = {level: torch.zeros(size, dtype=torch.long) for level, size in member.codebook_sizes().items()}
    for _, batch in numbered_batches(splits.validation, window, config.evaluation.batch_size, accelerator):
        posterior_means = member.posterior_means(batch.images, batch.labels)
        if moments is not None and posterior_means is not None:
            wide = posterior_means.to(moments.dtype)
            moments += torch.stack([wide.sum(0), wide.square().sum(0)])  # (2, D)
        for level, codes in member.codes(batch.images, batch.labels).items():
            counts[level] += code_counts(codes.cpu(), len(counts[level]))
    active = total = None
    if moments is not None:
        first, second = accelerator.reduce(moments) / len(window)
        active, total = int((second - first.square() > ACTIVE_VARIANCE).sum()), len(first)
    usages = {level: usage_of(accelerator.reduce(count.to(accelerator.device))) for level, count in counts.items()}
    return {
        "active_units": active,
        "units": total,
        "codebook_usage": {level: usage._asdict() for level, usage in usages.items()} or None,
    }


def draw_samples(member: Member, config: FamilyConfig, splits: Splits, accelerator: Accelerator) -> ImageSet:
    """Images from the model, with the classes in turn; sample i does not depend on the number of processes."""
    num, size = config.evaluation.num_samples, config.evaluation.batch_size
    classes = len(splits.train.classes)
    chunks = -(-num // size)
    drawn = []
    for chunk in share_of(list(range(chunks)), accelerator):
        wanted = [i % classes if classes else NO_LABEL for i in range(chunk * size, (chunk + 1) * size)]
        generator = keyed_generator(config.seed, "sample", chunk)
        drawn.append(member.sample(size, torch.tensor(wanted, device=accelerator.device), generator))
    if not drawn:  # more processes than chunks
        drawn = [torch.zeros(0, size, *splits.train.load(0).shape, dtype=torch.uint8, device=accelerator.device)]
    else:
        drawn = [torch.stack(drawn)]  # (chunks, size, C, H, W)
    pixels = gather_shares(drawn[0], chunks, accelerator).flatten(0, 1)[:num].cpu()
    labels = [i % classes if classes else NO_LABEL for i in range(num)]
    return ImageSet(splits.train.classes, labels, [f"{i:06d}" for i in range(num)], InMemory(pixels))


@torch.no_grad()
def see(
    classifier: Classifier, images: ImageSet, window: list[int], config: FamilyConfig, accelerator: Accelerator
) -> Seen:
    """Outputs of a classifier for a window of images, gathered on every process, on the CPU."""
    mine = in_order(share_of(window, accelerator), config.evaluation.batch_size)
    blank = images.load(0)[None].to(accelerator.device)
    parts = [Seen(*(x[:0].float() for x in classifier(blank)))]  # this process may have no images
    for batch in load_batches(images, mine, 0):
        with accelerator.autocast():
            parts.append(Seen(*(x.float() for x in classifier(batch.images.to(accelerator.device)))))
    return Seen(*(gather_shares(torch.cat(x), len(window), accelerator).cpu() for x in zip(*parts, strict=True)))


def classifier_on(
    images: ImageSet, splits: Splits, config: FamilyConfig, directory: Path, accelerator: Accelerator
) -> Trained:
    """Train a classifier on images and export it to `directory`; at most `num_samples` held-out images judge it."""
    window = validation_window(len(splits.validation), config.evaluation.num_samples)
    labels = torch.tensor([splits.validation.labels[i] for i in window])

    def batches(step: int) -> Iterable[LabelledBatch]:
        place = {"process": accelerator.process_index, "processes": accelerator.num_processes}
        order: Iterable[list[Item]] = StepOrder(len(images), config.evaluation.batch_size, config.seed, step, **place)
        return (LabelledBatch(x.images, x.labels, x.batch_indices) for x in load_batches(images, order, 0))

    def accuracy(classifier: Classifier) -> float:
        seen = see(classifier, splits.validation, window, config, accelerator)
        return (seen.logits.argmax(1) == labels).double().mean().item()

    make_dir(directory)
    return train_classifier(
        lambda: new_classifier(config.evaluation, config.images.height_width, len(images.classes), config.seed),
        lambda step: iter(batches(step)),
        accuracy,
        config.evaluation,
        config.images.horizontal_flip,
        directory,
        config.seed,
        accelerator,
    )
