"""Image sets of a run: their images, labels and names, from a folder, torchvision, Hugging Face or generated shapes."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import Crop, decode_image, read_image, to_tensor
from vqvae2.images.folder import Listing, list_images, split
from vqvae2.images.huggingface import Rows, open_rows
from vqvae2.images.image_sets import NO_LABEL, ImageSet, Splits, hold_out, subset
from vqvae2.images.names import Names
from vqvae2.images.shapes import CLASSES, render

SHAPES_TRAIN = 20_000
SHAPES_VALIDATION = 512

Look = Callable[[Path], Listing]
Sift = Callable[[Rows, str], list[int]]


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
class EncodedRows:
    """Loads an image of the `datasets` library."""

    config: ImagesConfig
    rows: Rows

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        file, name, config = self.rows.file(index), self.rows.where(index), self.config
        return decode_image(file, name, config.height_width, config.channels, tuple(config.background), crop)


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
        from vqvae2.images.torchvision_sets import open_torchvision  # torchvision takes seconds to import

        splits = open_torchvision(images, seed)
    if images.max_images is None or images.max_images >= len(splits.train):
        return splits
    kept, _ = split(splits.train.labels, images.max_images, seed)
    return Splits(subset(splits.train, kept), splits.validation)


def _shapes(images: ImagesConfig, seed: int, part: str, count: int) -> ImageSet:
    labels = array("i", (i % len(CLASSES) for i in range(count)))
    names = Names.of(f"{part}_{i:06d}" for i in range(count))
    return ImageSet(list(CLASSES), labels, names, DrawnShapes(images, seed, part))


def _folder(images: ImagesConfig, seed: int, look: Look) -> Splits:
    assert images.root is not None  # required by source folder
    listing = look(Path(images.root))
    train = _files(images, listing)
    if images.validation_root is None:
        return hold_out(train, images, seed)
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
    train = subset(_encoded(images, rows), sift(rows, "train"))
    if held_out is None:
        return hold_out(train, images, seed)
    return Splits(train, subset(_encoded(images, held_out), sift(held_out, "validation")))


def _encoded(images: ImagesConfig, rows: Rows) -> ImageSet:
    return ImageSet(rows.classes, rows.labels, rows.names, EncodedRows(images, rows))
