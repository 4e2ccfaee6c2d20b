"""Batches of uint8 images from worker processes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vqvae2.errors import UserError
from vqvae2.images.order import Item
from vqvae2.images.sources import ImageSet
from vqvae2.seeding import keyed_generator


class ImageBatch(NamedTuple):
    """Images uint8 (B, C, H, W), labels int64 (B,), and each image's place in the global batch, int64 (B,)."""

    images: Tensor
    labels: Tensor
    positions: Tensor


class _Loaded(Dataset):
    def __init__(self, images: ImageSet, flip_seed: int | None):
        self.images = images
        self.flip_seed = flip_seed

    def __getitem__(self, item: Item) -> tuple[Tensor, int, int] | UserError:
        try:
            image = self.images.load(item.index)
        except UserError as error:  # raised in a worker it would reach the user as that worker's traceback
            return error
        if self.flip_seed is not None and _flips(self.flip_seed, item):
            image = image.flip(-1)
        return image, self.images.labels[item.index], item.position


def _flips(seed: int, item: Item) -> bool:
    return torch.rand((), generator=keyed_generator(seed, "flip", item.step, item.position)).item() < 0.5


def _collate(items: list[tuple[Tensor, int, int] | UserError]) -> ImageBatch | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    images, labels, positions = zip(*items, strict=True)
    return ImageBatch(torch.stack(images), torch.tensor(labels), torch.tensor(positions))


def load_batches(
    images: ImageSet, order: Sampler[list[Item]] | Sequence[list[Item]], workers: int, flip_seed: int | None = None
) -> Iterator[ImageBatch]:
    """The batches that `order` lists, loaded ahead by `workers` processes.

    The images are flipped at random where `flip_seed` is given.

    Raises:
        UserError: an image cannot be read.
    """
    loader = DataLoader(
        _Loaded(images, flip_seed),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
