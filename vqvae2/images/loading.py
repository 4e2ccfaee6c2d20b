"""Loading of batches of uint8 images in worker processes."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvae2.errors import UserError
from vqvae2.images.decode import Crop, random_crop
from vqvae2.images.image_sets import ImageSet
from vqvae2.run.seeding import keyed_generator
from vqvae2.run.stopping import ignore_stop_signals
from vqvae2.training.order import Item

MOST_REPLACED = 16  # unreadable images in a row before loading fails: the folder is then probably gone


class ImageBatch(NamedTuple):
    """A part of a global batch.

    Attributes:
        images: uint8 (B, C, H, W).
        labels: int64 (B,).
        batch_indices: batch index of each image, int64 (B,).
        indices: index of each image in the image set, int64 (B,).
    """

    images: Tensor
    labels: Tensor
    batch_indices: Tensor
    indices: Tensor


class Augmentation(NamedTuple):
    """Random changes of training images, as a function of (seed, step, batch index) only.

    Attributes:
        seed: seed of the run.
        flip: whether images are flipped horizontally with probability 0.5.
        crop: minimum and maximum fraction of the area that a random crop covers, at an aspect ratio of 3:4 to 4:3
            relative to the target size; None: the largest center crop.
    """

    seed: int
    flip: bool
    crop: tuple[float, float] | None


class _Loaded(Dataset):
    """Maps an item to (image, label, batch index, index) and the error messages of the images that were replaced.

    The image is None if no replacement can be read either.
    """

    def __init__(self, images: ImageSet, augmentation: Augmentation | None):
        self.images = images
        self.augmentation = augmentation

    def __getitem__(self, item: Item) -> tuple[tuple[Tensor, int, int, int] | None, list[str]]:
        failures: list[str] = []
        for offset in range(min(MOST_REPLACED, len(self.images))):
            index = (item.index + offset) % len(self.images)
            try:
                image = self._load(index, item)
            except UserError as error:  # raised in a worker, it would be shown with a traceback
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
    return random_crop(augmentation.crop, _uniforms(augmentation, "crop", item, 4))


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
    order: Iterable[list[Item]],
    workers: int,
    augmentation: Augmentation | None = None,
) -> Iterator[ImageBatch]:
    """Yield the batches that `order` lists, loaded in advance by worker processes.

    An image that cannot be read is replaced by the next image, with one warning per file.

    Args:
        images: the image set.
        order: items of each batch.
        workers: number of worker processes; 0: load in this process.
        augmentation: random changes of the images; None: none.

    Raises:
        UserError: MOST_REPLACED images in a row cannot be read.
    """
    loader = DataLoader(
        _Loaded(images, augmentation),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=ignore_stop_signals,
    )
    for batch, failures in loader:
        if batch is None:
            raise UserError(
                f"{failures[-1]}; the {MOST_REPLACED - 1} images before it cannot be read either: "
                "check that the folder of images still exists"
            )
        for failure in failures:
            if failure not in images.warned:
                images.warned.add(failure)
                tqdm.write(f"warning: {failure}; the next image is used instead", file=sys.stderr)
        yield batch
