"""Image sets of torchvision, and those in the idx files of MNIST.

Imported only where it is needed: torchvision imports its models, and with them a part of PyTorch that takes seconds.
"""

import inspect
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torchvision.datasets
from PIL import Image
from torch import Tensor

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import Crop, to_tensor
from vqvae2.images.idx import idx_folder, read_idx
from vqvae2.images.image_sets import ImageSet, Splits, hold_out
from vqvae2.images.names import Names


class LabelledImages(Protocol):
    """A data set of pairs of a Pillow image and a label, such as torchvision's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]: ...


@dataclass(frozen=True)
class DatasetItems:
    """Loads an image of a torchvision data set."""

    config: ImagesConfig
    dataset: LabelledImages

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        image, config = self.dataset[index][0], self.config
        return to_tensor(image, config.height_width, config.channels, tuple(config.background), crop)


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


class Samples(Sequence[tuple[str, int]]):
    """The pairs of a path and a label that torchvision's DatasetFolder loads images from."""

    def __init__(self, samples: Sequence[tuple[str, int]]):
        self._paths = Names.of(path for path, _ in samples)
        self.labels = array("i", (label for _, label in samples))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[str, int]:  # type: ignore[override]  # no slices
        return self._paths[index], self.labels[index]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return zip(self._paths, self.labels, strict=True)


def open_torchvision(images: ImagesConfig, seed: int) -> Splits:
    """Open `images.source` torchvision:NAME, from idx files in `images.root` if there are any.

    Raises:
        UserError: torchvision has no such data set, or it cannot be opened or downloaded.
    """
    name = images.source.removeprefix("torchvision:")
    constructor = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(constructor):
        raise UserError(f"images.source: torchvision.datasets has no {name}: use one of torchvision's data sets")
    if folder := idx_folder(name, images.root):
        parts = (read_idx(folder, part) for part in ("train", "validation"))
        return Splits(*(_wrap(images, IdxDataset(*part, _class_names(name, part[1]))) for part in parts))
    create: Callable[..., torchvision.datasets.VisionDataset] = constructor
    accepted = inspect.signature(create).parameters
    common = {"root": images.root or "data", "download": True}
    common = {key: value for key, value in common.items() if key in accepted}
    try:
        if "train" in accepted:
            return Splits(*(_wrap(images, create(**common, train=x)) for x in (True, False)))
        if "split" in accepted:
            return Splits(*(_wrap(images, create(**common, split=x)) for x in ("train", "test")))
        return hold_out(_wrap(images, create(**common)), images, seed)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        where = f" (images.root: {common['root']})" if "root" in common else ""
        raise UserError(f"torchvision's {name} cannot be opened{where}: {error}") from error


def _wrap(images: ImagesConfig, dataset: LabelledImages) -> ImageSet:
    _pack_samples(dataset)
    targets = getattr(dataset, "targets", None)
    labels = array("i", map(int, targets if targets is not None else (dataset[i][1] for i in range(len(dataset)))))
    classes = [str(x) for x in getattr(dataset, "classes", sorted(set(labels)))]
    names = Names.of(f"{i:06d}" for i in range(len(dataset)))
    return ImageSet(classes, labels, names, DatasetItems(images, dataset))


def _class_names(name: str, labels: list[int]) -> list[str]:
    """Names of the classes of one of KIN, as in torchvision.

    Raises:
        UserError: a label has no name.
    """
    names = [str(x) for x in getattr(torchvision.datasets, name).classes]
    if labels and max(labels) >= len(names):
        raise UserError(f"{name}: label {max(labels)} is not valid: its labels are 0 to {len(names) - 1}")
    return names


def _pack_samples(dataset: object) -> None:
    """Replace the lists in one of torchvision's folder data sets, which workers would copy; do nothing for others."""
    if isinstance(dataset, torchvision.datasets.DatasetFolder):
        dataset.samples = Samples(dataset.samples)
        dataset.targets = dataset.samples.labels
        if hasattr(dataset, "imgs"):
            dataset.imgs = dataset.samples
