"""Batches of uint8 images from worker processes."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from vqvae2.errors import UserError
from vqvae2.images.decode import Crop
from vqvae2.images.sources import ImageSet
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.order import Item

WIDEST = 4 / 3  # of a random crop, against the wanted shape
MOST_REPLACED = 16  # unreadable images in a row; more mean that the folder is gone


class ImageBatch(NamedTuple):
    """A part of a global batch.

    Attributes:
        images: uint8 (B, C, H, W).
        labels: int64 (B,).
        batch_indices: each image's place in the global batch, int64 (B,).
        indices: which images of the set they are, int64 (B,).
    """

    images: Tensor
    labels: Tensor
    batch_indices: Tensor
    indices: Tensor


class Augmentation(NamedTuple):
    """What changes training images at random, by (seed, step, place in the global batch) alone.

    Attributes:
        seed: of the run.
        flip: mirror every other one.
        crop: smallest and largest share of the area that is kept, at up to 4:3 in either direction; None: all.
    """

    seed: int
    flip: bool
    crop: tuple[float, float] | None


class _Loaded(Dataset):
    """Items of images -> (image, label, position, index), and the messages of files that had to be replaced."""

    def __init__(self, images: ImageSet, augmentation: Augmentation | None):
        self.images = images
        self.augmentation = augmentation

    def __getitem__(self, item: Item) -> tuple[tuple[Tensor, int, int, int] | None, list[str]]:
        failures: list[str] = []
        for offset in range(min(MOST_REPLACED, len(self.images))):
            index = (item.index + offset) % len(self.images)
            try:
                image = self._load(index, item)
            except UserError as error:  # raised in a worker it would reach the user as that worker's traceback
                failures.append(str(error))
                continue
            return (image, self.images.labels[index], item.batch_index, index), failures
        return None, failures

    def _load(self, index: int, item: Item) -> Tensor:
        augmentation = self.augmentation
        if augmentation is None:
            return self.images.load(index)
        image = self.images.load(index, _crop(augmentation, item))
        return image.flip(-1) if augmentation.flip and _uniforms(augmentation, "flip", item, 1)[0] < 0.5 else image


def _crop(augmentation: Augmentation, item: Item) -> Crop | None:
    if augmentation.crop is None:
        return None
    smallest, largest = augmentation.crop
    area, ratio, x, y = _uniforms(augmentation, "crop", item, 4)
    return Crop(smallest + area * (largest - smallest), WIDEST ** (2 * ratio - 1), x, y)


def _uniforms(augmentation: Augmentation, what: str, item: Item, count: int) -> list[float]:
    return torch.rand(count, generator=keyed_generator(augmentation.seed, what, item.step, item.batch_index)).tolist()


def _collate(items: list[tuple[Any, list[str]]]) -> tuple[ImageBatch | None, list[str]]:
    failures = [failure for _, failed in items for failure in failed]
    loaded = [item for item, _ in items]
    if None in loaded:
        return None, failures
    images, labels, batch_indices, indices = zip(*loaded, strict=True)
    return ImageBatch(torch.stack(images), *(torch.tensor(x) for x in (labels, batch_indices, indices))), failures


def load_batches(
    images: ImageSet,
    order: Sampler[list[Item]] | Sequence[list[Item]],
    workers: int,
    augmentation: Augmentation | None = None,
) -> Iterator[ImageBatch]:
    """The batches that `order` lists, loaded ahead by `workers` processes.

    In place of one that has become
    unreadable the next one is taken, with a warning, once for each file.

    Raises:
        UserError: several images in a row cannot be read.
    """
    loader = DataLoader(
        _Loaded(images, augmentation),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )
    for batch, failures in loader:
        if batch is None:
            raise UserError(f"{failures[-1]}; nor can the {MOST_REPLACED - 1} before it")
        for failure in failures:
            if failure not in images.warned:
                images.warned.add(failure)
                tqdm.write(f"warning: {failure}; the next image takes its place", file=sys.stderr)
        yield batch
