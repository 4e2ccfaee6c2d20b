"""Loading batches of images, with and without worker processes."""

import itertools
import multiprocessing
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import Crop, to_tensor
from vqvae2.images.image_sets import ImageSet
from vqvae2.images.loading import Augmentation, ImageBatch, load_batches
from vqvae2.images.sources import open_images
from vqvae2.run import stopping
from vqvae2.training.order import Item, StepOrder, in_order


@pytest.fixture
def images() -> ImageSet:
    return open_images(ImagesConfig(source="shapes", size=16, max_images=11), seed=0).train


def take(
    images: ImageSet,
    workers: int = 0,
    augmentation: Augmentation | None = None,
    first_step: int = 0,
    count: int = 4,
) -> list[ImageBatch]:
    """Return the first `count` batches, starting at `first_step`."""
    order = StepOrder(len(images), 6, seed=1, first_step=first_step)
    return list(itertools.islice(load_batches(images, order, workers, augmentation), count))


def same(one: list[ImageBatch], other: list[ImageBatch]) -> bool:
    """Whether all tensors of the batches are equal."""
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def flipped(images: ImageSet, item: Item, seed: int) -> bool:
    """Whether the image of `item` is flipped horizontally when it is loaded."""
    batch = next(load_batches(images, [[item]], 0, None if seed is None else Augmentation(seed, True, None)))
    plain = images.load(item.index)
    assert torch.equal(batch.images[0], plain) or torch.equal(batch.images[0], plain.flip(-1))
    return not torch.equal(batch.images[0], plain)


def test_batches_are_the_images_that_the_order_lists(images: ImageSet):
    """Images, labels and batch indices are those of the listed items, in this order."""
    batch = next(load_batches(images, in_order([7, 2, 10], 3), 0))
    assert torch.equal(batch.images, torch.stack([images.load(i) for i in (7, 2, 10)]))
    assert batch.labels.tolist() == [images.labels[i] for i in (7, 2, 10)] and batch.batch_indices.tolist() == [
        0,
        1,
        2,
    ]


def test_workers_change_nothing(images: ImageSet):
    """Two workers give the same batches as no workers, with flips and crops, also when starting at a later step."""
    augmentation = Augmentation(5, flip=True, crop=(0.3, 1.0))
    alone = take(images, augmentation=augmentation)
    assert same(alone, take(images, workers=2, augmentation=augmentation))
    assert same(alone[2:], take(images, workers=2, augmentation=augmentation, first_step=2, count=2))


def test_flips_are_keyed_by_seed_step_and_position(images: ImageSet):
    """Flips depend on seed, step and batch index, but not on the image; about half of the images are flipped."""
    keys = [(step, position) for step in range(8) for position in range(8)]
    flips = {key: flipped(images, Item(0, *key), seed=5) for key in keys}
    assert flips == {key: flipped(images, Item(4, *key), seed=5) for key in keys}
    assert flips != {key: flipped(images, Item(0, *key), seed=6) for key in keys}
    assert len({tuple(flips[step, position] for position in range(8)) for step in range(8)}) > 4
    assert len({tuple(flips[step, position] for step in range(8)) for position in range(8)}) > 4
    assert 20 <= sum(flips.values()) <= 44


def test_without_a_flip_seed_nothing_is_flipped(images: ImageSet):
    """Without augmentation, no image is flipped."""
    assert not any(flipped(images, Item(0, step, 0), seed=None) for step in range(20))


def test_crops_are_parts_of_the_asked_size(images: ImageSet):
    """Area and aspect ratio of the crops lie in their ranges, and crops reach all borders.

    Each step and batch index gives a different crop.
    """
    whole = Image.fromarray(np.indices((60, 90)).transpose(1, 2, 0).astype(np.uint8)[..., [0, 1, 1]])

    def load(index: int, crop: Crop | None = None) -> Tensor:
        return to_tensor(whole, (16, 16), 3, crop=crop)

    ramps = ImageSet([], [-1], ["ramps"], load)
    order = [[Item(0, step, position) for position in range(20)] for step in range(20)]
    batches = load_batches(ramps, order, 0, Augmentation(3, False, (0.25, 0.5)))
    seen = torch.cat([batch.images for batch in batches]).float()
    # height and width of the crop; the difference between pixels 1 and 14 of 16 spans 13 pixels
    heights = (seen[:, 0, -2, 8] - seen[:, 0, 1, 8]) * 16 / 13
    widths = (seen[:, 1, 8, -2] - seen[:, 1, 8, 1]) * 16 / 13
    shares, ratios = heights * widths / (60 * 90), widths / heights
    assert 0.24 < shares.min() < 0.28 and 0.47 < shares.max() < 0.52
    assert 0.70 < ratios.min() < 0.80 and 1.25 < ratios.max() < 1.40
    assert seen[:, 0].min() < 2 and seen[:, 0].max() > 57 and seen[:, 1].min() < 2 and seen[:, 1].max() > 87
    assert len(seen.flatten(1).unique(dim=0)) == len(seen)


def broken_at(images: ImageSet, *indices: int) -> ImageSet:
    """Return the same set with images that cannot be read at the given indices."""

    def load(index: int, crop: Crop | None = None) -> Tensor:
        if index in indices:
            raise UserError(f"{images.names[index]}: cannot be read")
        return images.load(index, crop)

    return ImageSet(images.classes, images.labels, images.names, load)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_broke_is_replaced_by_the_next(images: ImageSet, workers: int, capsys: pytest.CaptureFixture):
    """An unreadable image is replaced by the next readable one, with its label and index, wrapping around at the end.

    A warning is printed once per file.
    """
    broken = broken_at(images, 3, 4, 10)
    batches = list(load_batches(broken, in_order([2, 3, 4, 10, 3], 2), workers))
    taken = torch.cat([batch.indices for batch in batches]).tolist()
    assert taken == [2, 5, 5, 0, 5]
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack([images.load(i) for i in taken]))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [images.labels[i] for i in taken]
    said = capsys.readouterr().err
    assert [said.count(f"warning: {images.names[i]}: cannot be read") for i in (3, 4, 10)] == [1, 1, 1]


def signals_ignored(index: int, crop: Crop | None = None) -> Tensor:
    """An image whose pixels are 1 where it is loaded by a process that ignores the signals to stop."""
    ignored = all(signal.getsignal(x) == signal.SIG_IGN for x in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
    return torch.full((3, 2, 2), int(ignored), dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_ignore_the_signals_to_stop(images: ImageSet, workers: int):
    """Sent to all processes, as by a terminal, they are for the process that saves; it ends its workers itself."""
    batch = next(load_batches(replace(images, load=signals_ignored), in_order([0, 1], 2), workers))
    assert (batch.images == workers).all()


def ends_with_a_worker(images: ImageSet) -> None:
    """End a process that has not finished loading as Python does, and wait for the signals of the ended workers."""
    batches = load_batches(images, in_order(range(6), 2), 1)
    next(batches)
    stopping._end_workers()
    time.sleep(0.5)


def test_workers_that_are_left_are_no_error(images: ImageSet):
    process = multiprocessing.get_context("fork").Process(target=ends_with_a_worker, args=(images,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_a_folder_that_is_gone_ends_the_loading(tmp_path: Path):
    """Loading raises a UserError when too many images in a row cannot be read, here because the files were deleted."""
    for i in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i:02d}.png")
    config = ImagesConfig(source="folder", root=str(tmp_path), size=8, validation_fraction=0.1)
    train, _ = open_images(config, seed=0)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"\.png: cannot be read as an image .*; the 15 images before it"):
        next(load_batches(train, in_order([0], 1), 2))
