"""The pictures of one trained model of the family."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.family.member import Member
from vqvae2.images.grids import save_grid, save_image
from vqvae2.images.image_sets import ImageSet, Splits
from vqvae2.training.window import validation_window

COLUMNS = 8  # pictures in a row
SAMPLES_SHOWN = 64
CELL = 16  # pixels of a side of a weight in its picture


def save_pictures(member: Member, splits: Splits, samples: ImageSet, directory: Path, accelerator: Accelerator) -> None:
    """Save images above their reconstructions, of the training and the held-out images, and a grid of samples.

    A model without reconstructions has the samples alone.
    """
    for part, images in splits._asdict().items():
        window = validation_window(len(images), COLUMNS)
        originals = torch.stack([images.load(i) for i in window]).to(accelerator.device)
        labels = torch.tensor([images.labels[i] for i in window], device=accelerator.device)
        reconstructions = member.reconstruct(originals, labels)
        if reconstructions is not None:
            save_grid(torch.cat([originals, reconstructions]), directory / f"{part}.png", len(window))
    shown = torch.stack([samples.load(i) for i in range(min(SAMPLES_SHOWN, len(samples)))])
    save_grid(shown, directory / "samples.png", COLUMNS)
    weights = member.group_weights()
    if weights is not None:
        save_image(cells_of(weights), directory / "groups.png")


def cells_of(weights: Tensor) -> Tensor:
    """A matrix of numbers from 0 as a uint8 image (1, H, W), a square of CELL pixels for each; the largest is white."""
    gray = (weights / weights.max().clamp(min=1e-12) * 255).round().to(torch.uint8)
    return gray.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[None]
