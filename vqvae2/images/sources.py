"""Image sets of a run: their images, labels and names, from a folder, torchvision, Hugging Face or generated shapes."""

import inspect
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torchvision.datasets
from PIL import Image
from torch import Tensor

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import Crop, decode_image, read_image, to_tensor
from vqvae2.images.folder import Listing, list_images, split
from vqvae2.images.huggingface import Rows, open_rows
from vqvae2.images.idx import class_names, idx_folder, read_idx
from vqvae2.images.names import Chosen, Names, WithFlipped
from vqvae2.images.samples import pack_samples
from vqvae2.images.shapes import CLASSES, render

SHAPES_TRAIN = 20_000
SHAPES_VALIDATION = 512
NO_LABEL = -1

Look = Callable[[Path], Listing]
Sift = Callable[[Rows, str], list[int]]


class Loader(Protocol):
    """A callable that loads one image of a set as uint8 (C, H, W).

    It is a class rather than a closure because worker processes that are not forked receive it by pickle.
    """

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor: ...


class LabelledImages(Protocol):
    """A data set of pairs of a Pillow image and a label, such as torchvision's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]: ...


@dataclass(frozen=True)
class DrawnShapes:
    """Renders an image of the built-in data set of shapes."""

    config: ImagesConfig
    seed: int
    part: str

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        rendered = render((self.seed, self.part, index), index % len(CLASSES), self.config.height_width)
        return to_tensor(rendered, self.config.height_width, self.config.channels, crop=crop)


@dataclass(frozen=True)
class Files:
    """Loads an image file from a folder."""

    config: ImagesConfig
    folder: Path
    names: Sequence[str]

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        path, config = self.folder / self.names[index], self.config
        return read_image(path, config.height_width, config.channels, tuple(config.background), crop)


@dataclass(frozen=True)
class DatasetItems:
    """Loads an image of a torchvision data set."""

    config: ImagesConfig
    dataset: LabelledImages

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        image, config = self.dataset[index][0], self.config
        return to_tensor(image, config.height_width, config.channels, tuple(config.background), crop)


@dataclass(frozen=True)
class EncodedRows:
    """Loads an image of the `datasets` library."""

    config: ImagesConfig
    rows: Rows

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        file, name, config = self.rows.file(index), self.rows.where(index), self.config
        return decode_image(file, name, config.height_width, config.channels, tuple(config.background), crop)


@dataclass(frozen=True)
class IdxDataset:
    """Grayscale images, uint8 (N, height, width), and labels, with items as those of a torchvision data set."""

    pixels: np.ndarray
    targets: Sequence[int]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), self.targets[index]


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


def every_row(rows: Rows, part: str) -> list[int]:
    """The indices of all rows."""
    return list(range(len(rows)))


def open_images(images: ImagesConfig, seed: int, look: Look = list_images, sift: Sift = every_row) -> Splits:
    """Open the training and validation images of a configuration.

    Args:
        images: the images section of the configuration.
        seed: seed of the split and of the generated shapes.
        look: lists the image files of a folder; the default lists all of them without decoding any.
        sift: returns the indices of the rows to use of a part, `train` or `validation`, of a data set of the
            `datasets` library; the default returns all of them.

    Raises:
        UserError: a folder or data set is missing or empty, or a split would have no images.
    """
    if images.source == "shapes":
        count = images.max_images or SHAPES_TRAIN
        return Splits(_shapes(images, seed, "train", count), _shapes(images, seed, "validation", SHAPES_VALIDATION))
    if images.source == "folder":
        splits = _folder(images, seed, look)
    elif images.source.startswith("huggingface"):
        splits = _huggingface(images, seed, sift)
    else:
        splits = _torchvision(images, seed)
    if images.max_images is None or images.max_images >= len(splits.train):
        return splits
    kept, _ = split(splits.train.labels, images.max_images, seed)
    return Splits(_subset(splits.train, kept), splits.validation)


def _shapes(images: ImagesConfig, seed: int, part: str, count: int) -> ImageSet:
    labels = array("i", (i % len(CLASSES) for i in range(count)))
    names = Names.of(f"{part}_{i:06d}" for i in range(count))
    return ImageSet(list(CLASSES), labels, names, DrawnShapes(images, seed, part))


def _folder(images: ImagesConfig, seed: int, look: Look) -> Splits:
    assert images.root is not None  # required by source folder
    listing = look(Path(images.root))
    train = _files(images, listing)
    if images.validation_root is None:
        return _split(train, images, seed)
    held_out = look(Path(images.validation_root))
    unknown = sorted(set(held_out.classes) - set(listing.classes))
    if unknown or bool(held_out.classes) != bool(listing.classes):
        raise UserError(
            f"{images.validation_root}: its classes {held_out.classes} do not match those of {images.root}: "
            f"use folders or labels from {listing.classes}"
        )
    index = [listing.classes.index(name) for name in held_out.classes]
    labels = array("i", (index[x] if x != NO_LABEL else x for x in held_out.labels))
    return Splits(train, _files(images, held_out._replace(classes=listing.classes, labels=labels)))


def _files(images: ImagesConfig, listing: Listing) -> ImageSet:
    return ImageSet(listing.classes, listing.labels, listing.names, Files(images, listing.folder, listing.names))


def _huggingface(images: ImagesConfig, seed: int, sift: Sift) -> Splits:
    rows, held_out = open_rows(images)
    train = _subset(_encoded(images, rows), sift(rows, "train"))
    if held_out is None:
        return _split(train, images, seed)
    return Splits(train, _subset(_encoded(images, held_out), sift(held_out, "validation")))


def _encoded(images: ImagesConfig, rows: Rows) -> ImageSet:
    return ImageSet(rows.classes, rows.labels, rows.names, EncodedRows(images, rows))


def _torchvision(images: ImagesConfig, seed: int) -> Splits:
    name = images.source.removeprefix("torchvision:")
    constructor = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(constructor):
        raise UserError(f"images.source: torchvision.datasets has no {name}: use one of torchvision's data sets")
    if folder := idx_folder(name, images.root):
        parts = (read_idx(folder, part) for part in ("train", "validation"))
        return Splits(*(_wrap(images, IdxDataset(*part, class_names(name, part[1]))) for part in parts))
    create: Callable[..., torchvision.datasets.VisionDataset] = constructor
    accepted = inspect.signature(create).parameters
    common = {"root": images.root or "data", "download": True}
    common = {key: value for key, value in common.items() if key in accepted}
    try:
        if "train" in accepted:
            return Splits(*(_wrap(images, create(**common, train=x)) for x in (True, False)))
        if "split" in accepted:
            return Splits(*(_wrap(images, create(**common, split=x)) for x in ("train", "test")))
        return _split(_wrap(images, create(**common)), images, seed)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        where = f" (images.root: {common['root']})" if "root" in common else ""
        raise UserError(f"torchvision's {name} cannot be opened{where}: {error}") from error


def _wrap(images: ImagesConfig, dataset: LabelledImages) -> ImageSet:
    pack_samples(dataset)
    targets = getattr(dataset, "targets", None)
    labels = array("i", map(int, targets if targets is not None else (dataset[i][1] for i in range(len(dataset)))))
    classes = [str(x) for x in getattr(dataset, "classes", sorted(set(labels)))]
    names = Names.of(f"{i:06d}" for i in range(len(dataset)))
    return ImageSet(classes, labels, names, DatasetItems(images, dataset))


def _split(images: ImageSet, config: ImagesConfig, seed: int) -> Splits:
    """Hold out `validation_fraction` of the images for validation."""
    held_out_count = round(len(images) * config.validation_fraction)
    if not 0 < held_out_count < len(images):
        raise UserError(
            f"images.validation_fraction: {config.validation_fraction} of {len(images)} images holds out "
            f"{held_out_count}: training and validation need at least one image each: use more images or another "
            "fraction"
        )
    kept, held_out = split(images.labels, len(images) - held_out_count, seed)
    return Splits(_subset(images, kept), _subset(images, held_out))


def _subset(images: ImageSet, indices: Sequence[int]) -> ImageSet:
    chosen = array("i", indices)
    labels = array("i", (images.labels[i] for i in chosen))
    return ImageSet(images.classes, labels, Chosen(images.names, chosen), Subset(images.load, chosen))


def with_flipped_copies(images: ImageSet) -> ImageSet:
    """Return the images followed by a horizontally flipped copy of each, with " flipped" appended to its name."""
    labels, load = array("i", images.labels) * 2, WithFlippedCopies(images.load, len(images))
    return ImageSet(images.classes, labels, WithFlipped(images.names), load, images.warned)
