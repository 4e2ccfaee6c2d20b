"""A comparison in two processes finds what one finds, also where one of them has no held-out images."""

import json
from pathlib import Path

import pytest

from tests.family.test_comparison import config
from vqvae2.family.comparison import compare

MODELS = "cvae"
HELD_OUT = 6  # fewer than the batch, so that the second process has none
ALIKE = ("parameters", "reconstruction_mse", "rate", "distortion", "bound", "exchange_loss", "steps", "active_units")


def before(folder: Path) -> None:
    compare(config(folder / "one", MODELS, test_images=HELD_OUT))


def scenario(folder: Path) -> None:
    """Called in each of two processes."""
    compare(config(folder / "two", MODELS, test_images=HELD_OUT))


def after(folder: Path) -> None:
    """Nothing is left to do."""


def test_two_processes_find_what_one_finds(together: Path):
    folder = together / "tests.family.test_two_processes"
    one, two = (json.loads((folder / x / "comparison.json").read_text())["models"] for x in ("one", "two"))
    assert list(one) == list(two) == MODELS.split(",")
    for name, found in one.items():
        defined = [key for key in ALIKE if found[key] is not None]
        assert [two[name][key] for key in defined] == pytest.approx([found[key] for key in defined], rel=1e-3)
        assert defined == [key for key in ALIKE if two[name][key] is not None]
        assert (two[name]["fid"] is None) == (found["fid"] is None)
