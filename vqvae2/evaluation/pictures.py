"""Images of the report: reconstructions, samples of each class, samples by temperature, nearest training images."""

from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.autoencoder.validation import GRID_IMAGES, save_reconstruction_grid
from vqvae2.evaluation.subject import Subject
from vqvae2.generation.samples import Written, read_sample
from vqvae2.images.grids import save_grid
from vqvae2.training.window import validation_window

COLUMNS = 8
CLASSES_SHOWN = 10
TEMPERATURES = (0.7, 0.85, 1.0, 1.15)
NEIGHBOURS = 3


def save_all(subject: Subject, written: Written, real: list[int], neighbours: Tensor | None, directory: Path) -> None:
    """Save the images of the report to `directory`.

    Args:
        subject: the run.
        written: its samples.
        real: indices of the training images that the samples are compared with.
        neighbours: for each sample the indices in `real` of its nearest training images, (N, count), nearest first;
            None: not available.
        directory: the folder to write to.
    """
    images = subject.images.validation
    shown = validation_window(len(images), GRID_IMAGES)
    save_reconstruction_grid(
        subject.generator.autoencoder, images, shown, directory / "reconstructions.png", subject.accelerator
    )
    by_class = [_of_class(written, label) for label in range(min(len(subject.classes), CLASSES_SHOWN))]
    rows = [paths for paths in by_class if paths] or [written.paths[:COLUMNS]]
    _save_rows([[read_sample(path) for path in paths] for paths in rows], directory / "samples.png")

    labels = [i % len(subject.classes) for i in range(COLUMNS)] if subject.classes else None
    config = subject.config
    temperatures = [
        subject.generator.sample(
            COLUMNS,
            labels,
            temperature=temperature,
            top_p=config.evaluation.top_p,
            guidance=config.evaluation.guidance,
            seed=config.seed,
            batch_size=COLUMNS,
        )
        for temperature in TEMPERATURES
    ]
    save_grid(torch.cat(temperatures), directory / "temperatures.png", COLUMNS)

    if neighbours is not None:
        shown = list(range(min(COLUMNS, len(written.paths))))
        compared = [[read_sample(written.paths[i]) for i in shown]]
        for rank in range(neighbours.shape[1]):
            compared.append([subject.images.train.load(real[neighbours[i, rank]]) for i in shown])
        _save_rows(compared, directory / "neighbours.png")


def _save_rows(rows: list[list[Tensor]], path: Path) -> None:
    """Save rows of at most COLUMNS images as one image; shorter rows are padded with white."""
    blank = torch.full_like(rows[0][0], 255)
    cells = chain.from_iterable([*row, *[blank] * (COLUMNS - len(row))] for row in rows)
    save_grid(torch.stack(list(cells)), path, COLUMNS)


def _of_class(written: Written, label: int) -> list[Path]:
    assert written.labels is not None  # the run has classes
    return [path for path, x in zip(written.paths, written.labels.tolist(), strict=True) if x == label][:COLUMNS]
