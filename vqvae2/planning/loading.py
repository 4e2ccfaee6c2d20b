"""How fast one core of this machine loads images, for planning."""

from collections.abc import Callable

import numpy as np

from vqvae2.benchmarks.data import decoding_rates
from vqvae2.benchmarks.timing import seconds_per_call
from vqvae2.config import Config
from vqvae2.images.sources import DrawnShapes
from vqvae2.images.torchvision_sets import DatasetItems, IdxDataset
from vqvae2.planning.speed import CPU

FILES = {"small JPEG": (256, 256), "3-megapixel JPEG": (2048, 1536)}  # (width, height)
LOADED = 8  # drawn images or arrays that are timed


def loading_rates(config: Config) -> dict[str, float]:
    """Images per second of one core of this machine: of drawn shapes, or of files of two sizes and arrays of pixels.

    A torchvision data set holds files or arrays; the name does not tell which.
    """
    images = config.images
    if images.source == "shapes":
        return {"drawn": _loading_rate(DrawnShapes(images, config.seed, "train"))}
    files = decoding_rates(config, FILES, repetitions=3, count=2)
    if not images.source.startswith("torchvision:"):
        return files
    blank = np.zeros((LOADED, *images.height_width), np.uint8)
    return {"array": _loading_rate(DatasetItems(images, IdxDataset(blank, range(LOADED), []))), **files}


def _loading_rate(items: Callable[[int], object]) -> float:
    return LOADED / seconds_per_call({"load": lambda: [items(i) for i in range(LOADED)]}, CPU, 3)["load"]
