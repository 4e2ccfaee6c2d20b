"""Rejection sampling: keep the samples with the highest classifier confidence (Razavi et al. 2019, section 3.3)."""

import math
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.evaluation.classifier import Classifier, load_classifier
from vqvae2.generation.generator import Generator
from vqvae2.generation.samples import Written, read_sample, save_samples_grid
from vqvae2.run.directory import make_dir, write_atomically, writing

BATCH_SIZE = 64
REAL_CLASSIFIER = "classifier_real"  # evaluation part that contains the classifier trained on real images


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability (N,) of the requested class, or of the most probable class if none was requested.

    Args:
        logits: (N, classes).
        labels: requested classes, (N,) int64, -1 for none.
    """
    probabilities = logits.double().softmax(1)
    asked = probabilities.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return torch.where(labels < 0, probabilities.amax(1), asked)


def best_of_each_class(confidences: Tensor, labels: Tensor, fraction: float) -> Tensor:
    """Indices, in ascending order, of the most confident samples: `fraction` of each class, rounded up."""
    kept = []
    for label in labels.unique():
        indices = (labels == label).nonzero()[:, 0]
        order = confidences[indices].argsort(descending=True, stable=True)
        kept.append(indices[order[: math.ceil(fraction * len(indices))]])
    return torch.cat(kept).sort().values


def classifier_for(generator: Generator, fraction: float) -> Classifier:
    """Load the classifier that the evaluation of the run has trained on real images.

    Raises:
        UserError: `fraction` is not in (0, 1], the run has no classes, or it has not been evaluated.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"keep_fraction: {fraction!r} is not valid: use a number above 0 and at most 1")
    if not generator.classes:
        raise UserError(
            f"keep_fraction: {fraction!r}, but this run was trained on images without classes: leave it out"
        )
    if generator.run_dir is None:
        raise UserError(f"keep_fraction: {fraction!r}, but only evaluated runs have a classifier: leave it out")
    return load_classifier(generator.run_dir / "evaluation" / REAL_CLASSIFIER).to(generator.device)


@torch.no_grad()
def keep_best(written: Written, classifier: Classifier, fraction: float) -> Path:
    """Copy the most confident samples to a new folder in the same place, with an image grid of their own.

    Args:
        written: samples of a run with classes.
        classifier: the classifier trained on real images, on the device to compute on.
        fraction: fraction of each class to keep.

    Returns:
        The path of the image grid; the folder has the same name without the extension.
    """
    assert written.labels is not None  # the run has classes
    device = next(classifier.parameters()).device
    batches = [written.paths[i : i + BATCH_SIZE] for i in range(0, len(written.paths), BATCH_SIZE)]
    images = (torch.stack([read_sample(path) for path in batch]).to(device) for batch in batches)
    logits = torch.cat([classifier(batch).logits.float().cpu() for batch in images])
    kept = best_of_each_class(confidence(logits, written.labels), written.labels, fraction)
    name = f"{written.grid.stem}_best{fraction}"
    grid, folder = written.grid.with_name(f"{name}.png"), make_dir(written.grid.with_name(name))
    with writing(folder):
        paths = [folder / written.paths[i].name for i in kept]
        for path in paths:
            write_atomically(path, (written.grid.parent / path.name).read_bytes())
        save_samples_grid(paths, grid)
    return grid
