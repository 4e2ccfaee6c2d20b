"""The images of a comparison, kept in memory, and binarized once if the configuration asks for it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.family.config import FamilyConfig
from vqvae2.images.decode import Crop
from vqvae2.images.sources import ImageSet, Splits, open_images
from vqvae2.run.seeding import keyed_generator


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
