"""Sets of images of one size with their labels and names, and sets made of others."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import Crop, random_crop
from vqvae2.images.folder import split
from vqvae2.images.names import Chosen, WithCopies
from vqvae2.run.seeding import keyed_generator

NO_LABEL = -1


class Loader(Protocol):
    """A callable that loads one image of a set as uint8 (C, H, W).

    It is a class rather than a closure because worker processes that are not forked receive it by pickle.
    """

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Subset:
    """Loads the images of another set at the given indices."""

    load: Loader
    indices: Sequence[int]

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        return self.load(self.indices[index], crop)


@dataclass(frozen=True)
class WithFlippedCopies:
    """Loads the `count` images of another set, followed by a horizontally flipped copy of each."""

    load: Loader
    count: int

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        image = self.load(index % self.count, crop)
        return image if index < self.count else image.flip(-1)


@dataclass(frozen=True)
class WithCroppedCopies:
    """Loads the `count` images of another set, followed by random crops of each, which depend on `seed` alone."""

    load: Loader
    count: int
    area: tuple[float, float]
    seed: int

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        copy, original = divmod(index, self.count)
        if copy and crop is None:
            crop = random_crop(self.area, torch.rand(4, generator=keyed_generator(self.seed, "copy", index)).tolist())
        return self.load(original, crop)


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with their labels and names.

    Attributes:
        classes: names of the classes, in the order of the labels; empty if there are no classes.
        labels: class index of each image, NO_LABEL if there are no classes.
        names: name of each image: its path relative to the folder, or a name with its index.
        load: loads the image of an index, or a crop of it, as uint8 (C, H, W).
        warned: warnings about unreadable images that have been printed.
    """

    classes: list[str]
    labels: Sequence[int]
    names: Sequence[str]
    load: Loader
    warned: set[str] = field(default_factory=set, compare=False)

    def __len__(self) -> int:
        return len(self.names)


class Splits(NamedTuple):
    """The training and the validation images of a run."""

    train: ImageSet
    validation: ImageSet


def hold_out(images: ImageSet, config: ImagesConfig, seed: int) -> Splits:
    """Hold out `validation_fraction` of the images for validation.

    Raises:
        UserError: no image would be left for training or for validation.
    """
    held_out_count = round(len(images) * config.validation_fraction)
    if not 0 < held_out_count < len(images):
        raise UserError(
            f"images.validation_fraction: {config.validation_fraction} of {len(images)} images holds out "
            f"{held_out_count}: training and validation need at least one image each: use more images or another "
            "fraction"
        )
    kept, held_out = split(images.labels, len(images) - held_out_count, seed)
    return Splits(subset(images, kept), subset(images, held_out))


def subset(images: ImageSet, indices: Sequence[int]) -> ImageSet:
    """Return the images at the given indices."""
    chosen = array("i", indices)
    labels = array("i", (images.labels[i] for i in chosen))
    return ImageSet(images.classes, labels, Chosen(images.names, chosen), Subset(images.load, chosen))


def with_flipped_copies(images: ImageSet) -> ImageSet:
    """Return the images followed by a horizontally flipped copy of each, with " flipped" appended to its name."""
    return _with_copies(images, [" flipped"], WithFlippedCopies(images.load, len(images)))


def with_cropped_copies(images: ImageSet, copies: int, area: tuple[float, float], seed: int) -> ImageSet:
    """Return the images followed by random crops of each, with " cropped 1", " cropped 2" and so on in their names.

    Args:
        images: the images.
        copies: number of crops of each image.
        area: minimum and maximum fraction of the area that a crop covers.
        seed: seed of the crops.
    """
    suffixes = [f" cropped {copy}" for copy in range(1, copies + 1)]
    return _with_copies(images, suffixes, WithCroppedCopies(images.load, len(images), area, seed))


def _with_copies(images: ImageSet, suffixes: list[str], load: Loader) -> ImageSet:
    """The images, followed by a copy of all of them for each suffix of their names; `load` loads images and copies."""
    labels = array("i", images.labels) * (1 + len(suffixes))
    return ImageSet(images.classes, labels, WithCopies(images.names, suffixes), load, images.warned)
