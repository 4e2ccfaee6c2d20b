"""A comparison in two processes finds what one finds, also where one of them has no held-out images."""

import json
from pathlib import Path

import pytest

from tests.family.test_comparison import config, flat_images
from vqvae2.family.comparison import compare

HELD_OUT = 6  # fewer than the batch, so that the second process has none
ALIKE = ("parameters", "reconstruction_mse", "rate", "distortion", "bound", "exchange_loss", "steps", "active_units")


def compared(folder: Path, name: str) -> None:
    """Without classes, there is no classifier to train."""
    compare(config(folder / name, flat_images(folder / "images"), "vae", test_images=HELD_OUT))


def before(folder: Path) -> None:
    compared(folder, "one")


def scenario(folder: Path) -> None:
    """Called in each of two processes."""
    compared(folder, "two")


def after(folder: Path) -> None:
    """Nothing is left to do."""


def test_two_processes_find_what_one_finds(together: Path):
    folder = together / "tests.family.test_two_processes"
    one, two = (json.loads((folder / x / "comparison.json").read_text())["models"]["vae"] for x in ("one", "two"))
    assert [two[key] for key in ALIKE] == pytest.approx([one[key] for key in ALIKE], rel=1e-3)
