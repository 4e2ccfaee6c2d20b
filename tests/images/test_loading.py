"""Batches of images from worker processes."""

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.loading import ImageBatch, load_batches
from vqvae2.images.order import Item, StepOrder, in_order
from vqvae2.images.sources import ImageSet, open_images


@pytest.fixture
def images() -> ImageSet:
    return open_images(ImagesConfig(source="shapes", size=16, max_images=11), seed=0).train


def take(
    images: ImageSet,
    workers: int = 0,
    flip_seed: int | None = None,
    first_step: int = 0,
    count: int = 4,
) -> list[ImageBatch]:
    """The first batches of an order of the images."""
    order = StepOrder(len(images), 6, seed=1, first_step=first_step)
    return list(itertools.islice(load_batches(images, order, workers, flip_seed), count))


def same(one: list[ImageBatch], other: list[ImageBatch]) -> bool:
    """Whether all tensors are equal."""
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def flipped(images: ImageSet, item: Item, seed: int) -> bool:
    """Whether the image of `item` arrives mirrored."""
    batch = next(load_batches(images, [[item]], 0, seed))
    plain = images.load(item.index)
    assert torch.equal(batch.images[0], plain) or torch.equal(batch.images[0], plain.flip(-1))
    return not torch.equal(batch.images[0], plain)


def test_batches_are_the_images_that_the_order_lists(images: ImageSet):
    """Pixels, labels and positions are those of each item, in its place."""
    batch = next(load_batches(images, in_order([7, 2, 10], 3), 0))
    assert torch.equal(batch.images, torch.stack([images.load(i) for i in (7, 2, 10)]))
    assert batch.labels.tolist() == [images.labels[i] for i in (7, 2, 10)] and batch.positions.tolist() == [
        0,
        1,
        2,
    ]


def test_workers_change_nothing(images: ImageSet):
    """Two workers give what the process itself gives, flips included, also from a later step on."""
    alone = take(images, flip_seed=5)
    assert same(alone, take(images, workers=2, flip_seed=5))
    assert same(alone[2:], take(images, workers=2, flip_seed=5, first_step=2, count=2))


def test_flips_are_keyed_by_seed_step_and_position(images: ImageSet):
    """A change of any of the three changes some flips, the image changes none; about half are flipped."""
    keys = [(step, position) for step in range(8) for position in range(8)]
    flips = {key: flipped(images, Item(0, *key), seed=5) for key in keys}
    assert flips == {key: flipped(images, Item(4, *key), seed=5) for key in keys}
    assert flips != {key: flipped(images, Item(0, *key), seed=6) for key in keys}
    assert len({tuple(flips[step, position] for position in range(8)) for step in range(8)}) > 4
    assert len({tuple(flips[step, position] for step in range(8)) for position in range(8)}) > 4
    assert 20 <= sum(flips.values()) <= 44


def test_without_a_flip_seed_nothing_is_flipped(images: ImageSet):
    """Validation and extraction see the images as they are."""
    assert not any(flipped(images, Item(0, step, 0), seed=None) for step in range(20))


def broken_at(images: ImageSet, *indices: int) -> ImageSet:
    """The same set, some of whose images cannot be read any more."""

    def load(index: int) -> Tensor:
        if index in indices:
            raise UserError(f"{images.names[index]}: cannot be read")
        return images.load(index)

    return ImageSet(images.classes, images.labels, images.names, load)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_broke_is_replaced_by_the_next(images: ImageSet, workers: int, capsys: pytest.CaptureFixture):
    """With its label and index, past the end from the beginning, and one warning a file."""
    broken = broken_at(images, 3, 4, 10)
    batches = list(load_batches(broken, in_order([2, 3, 4, 10, 3], 2), workers))
    taken = torch.cat([batch.indices for batch in batches]).tolist()
    assert taken == [2, 5, 5, 0, 5]
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack([images.load(i) for i in taken]))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [images.labels[i] for i in taken]
    said = capsys.readouterr().err
    assert [said.count(f"warning: {images.names[i]}: cannot be read") for i in (3, 4, 10)] == [1, 1, 1]


def test_a_folder_that_is_gone_ends_the_loading(tmp_path: Path):
    """Where image after image cannot be read."""
    for i in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i:02d}.png")
    config = ImagesConfig(source="folder", root=str(tmp_path), size=8, validation_fraction=0.1)
    train, _ = open_images(config, seed=0)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"\.png: cannot be read as an image .*; nor can the 15 before it"):
        next(load_batches(train, in_order([0], 1), 2))
