"""The images of a comparison, kept in memory, and binarized once if the configuration asks for it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.family.config import FamilyConfig
from vqvae2.images.decode import Crop
from vqvae2.images.image_sets import ImageSet, Splits
from vqvae2.images.loading import ImageBatch, load_batches
from vqvae2.images.sources import open_images
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.order import in_order
from vqvae2.training.window import share_of


@dataclass(frozen=True)
class InMemory:
    """Loads an image from uint8 (N, C, H, W); `crop` is ignored, as images are not cropped at random."""

    pixels: Tensor

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        return self.pixels[index]


def open_in_memory(config: FamilyConfig) -> Splits:
    """Load the training and the held-out images; binarize each set with its own numbers, the same in every process."""
    splits = open_images(config.images, config.seed)
    return Splits(*(_loaded(images, part, config) for part, images in splits._asdict().items()))


def _loaded(images: ImageSet, part: str, config: FamilyConfig) -> ImageSet:
    pixels = torch.stack([images.load(i) for i in range(len(images))])
    if config.binarise:
        pixels = binarised(pixels, keyed_generator(config.seed, "binarise", part))
    return ImageSet(images.classes, images.labels, images.names, InMemory(pixels))


def binarised(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel as 255 with probability value / 255, else 0: uint8 of the same shape."""
    white = torch.rand(pixels.shape, generator=generator) * 255 < pixels
    return white.to(torch.uint8) * 255


def numbered_batches(
    images: ImageSet, window: list[int], size: int, accelerator: Accelerator
) -> Iterator[tuple[int, ImageBatch]]:
    """This process's batches of a window of images, with their numbers, on the device."""
    groups = in_order(window, size)
    mine = share_of(list(range(len(groups))), accelerator)
    for number, batch in zip(mine, load_batches(images, [groups[i] for i in mine], 0), strict=True):
        yield number, ImageBatch(*(x.to(accelerator.device) for x in batch))
