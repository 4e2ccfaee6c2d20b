"""Data loading workers with the start methods spawn and forkserver, which pickle everything sent to them."""

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import ROOT
from vqvae2.config import ImagesConfig
from vqvae2.images.decode import Crop
from vqvae2.images.image_sets import ImageSet, with_cropped_copies, with_flipped_copies
from vqvae2.images.loading import load_batches
from vqvae2.images.sources import open_images
from vqvae2.images.survey import survey_images, surveyor
from vqvae2.training.order import in_order

SIZE = 8


@pytest.fixture(params=["spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """Set the start method of worker processes during a test."""
    former = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(former, force=True)


@dataclass(frozen=True)
class OneOfEach:
    """Loads the last image of each of several sets, so that all sets can be tested with one set of workers."""

    sets: list[ImageSet]

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        images = self.sets[index]
        return images.load(len(images) - 1, crop)


def sources(folder: Path) -> dict[str, ImageSet]:
    """Return a set of 8x8 images for each source."""
    for name in ("hat", "shoe"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9, 12), (60 * i, 200, 30)).save(folder / name / f"{i}.png")
    table = folder / "list.csv"
    table.write_text("path,label\n" + "".join(f"hat/{i}.png,hat\nshoe/{i}.png,shoe\n" for i in range(4)))
    half = {"size": SIZE, "validation_fraction": 0.5}
    opened = {
        "folder": ImagesConfig(source="folder", root=str(folder), validation_root=str(folder), size=SIZE),
        "csv": ImagesConfig(source="folder", root=str(table), validation_root=str(folder), size=SIZE),
        "subset": ImagesConfig(source="folder", root=str(folder), **half),
        "torchvision": ImagesConfig(source="torchvision:FakeData", **half),
        "shapes": ImagesConfig(source="shapes", size=SIZE, max_images=5),
    }
    sets = {name: open_images(config, seed=0).train for name, config in opened.items()}
    sets["surveyed"] = open_images(opened["subset"], seed=0, look=surveyor(opened["subset"], folder, show=False)).train
    cropped = with_cropped_copies(sets["folder"], 1, (0.5, 1.0), seed=0)
    return {**sets, "flipped": with_flipped_copies(sets["shapes"]), "cropped": cropped}


def test_workers_load_every_source(start_method: str, tmp_path: Path) -> None:
    """Two workers load the same images as the main process, and survey a folder with the same result."""
    sets = list(sources(tmp_path / "pictures").values())
    together = ImageSet([], [-1] * len(sets), [str(i) for i in range(len(sets))], OneOfEach(sets))
    batches = list(load_batches(together, in_order(list(range(len(sets))), 3), workers=2))
    loaded = torch.cat([batch.images for batch in batches])
    assert torch.equal(loaded, torch.stack([images.load(len(images) - 1) for images in sets]))

    root = tmp_path / "pictures"
    surveys = [
        survey_images(
            root,
            ImagesConfig(source="folder", root=str(root), size=SIZE, workers=workers),
            tmp_path / f"{workers}.safetensors",
            frozen=False,
            show=False,
        )
        for workers in (0, 2)
    ]
    assert list(surveys[0]) == list(surveys[1]) and len(surveys[1].readable) == 8


def test_a_script_ends_while_its_workers_wait():
    """Workers ignore SIGTERM, with which multiprocessing ends them when Python exits."""
    code = (
        "from itertools import repeat\n"
        "from vqvae2.config import ImagesConfig\n"
        "from vqvae2.images.loading import load_batches\n"
        "from vqvae2.images.sources import open_images\n"
        "from vqvae2.training.order import in_order\n"
        "train = open_images(ImagesConfig(size=8, max_images=8), 0).train\n"
        "batches = load_batches(train, repeat(in_order(list(range(8)), 8)[0]), 1)\n"
        "cycle = [next(batches), batches]\n"
        "cycle.append(cycle)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100, cwd=ROOT)
