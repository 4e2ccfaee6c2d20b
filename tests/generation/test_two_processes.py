"""A folder is reconstructed by two processes as by one."""

import csv
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from vqvae2 import Generator
from vqvae2.generation.folder import reconstruct_folder
from vqvae2.images.grids import save_image

IMAGES = 5


def reconstruct(folder: Path, name: str) -> None:
    generator = Generator.from_pretrained("mnist", device="cpu", dtype="float32")
    reconstruct_folder(generator, folder / "images", PartialState(), folder / name, beside=False, workers=0)


def before(folder: Path) -> None:
    (folder / "images").mkdir()
    for i in range(IMAGES):
        save_image(torch.full((1, 28, 28), 50 * i, dtype=torch.uint8), folder / "images" / f"{i}.png")
    reconstruct(folder, "one")


def scenario(folder: Path) -> None:
    """Called in each of two processes."""
    reconstruct(folder, "two")


def after(folder: Path) -> None:
    """Nothing is left to do."""


def test_two_processes_reconstruct_what_one_does(together: Path) -> None:
    folder = together / __name__
    one, two = (list(csv.DictReader((folder / x / "images.csv").open())) for x in ("one", "two"))
    assert len(one) == IMAGES and [x["name"] for x in one] == [x["name"] for x in two]
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys() and (folder / "two" / "pictures" / f"{row['name']}.png").exists()
        numbers = [key for key in row if key != "name"]
        assert [float(other[x]) for x in numbers] == pytest.approx([float(row[x]) for x in numbers], rel=1e-4)
