"""Order of the training images: the batch of a step is a function of (seed, step) only."""

import itertools
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from vqvae2.run.seeding import keyed_generator


class Item(NamedTuple):
    """One image of a batch.

    Attributes:
        index: index of the image in the data set.
        step: training step.
        batch_index: index in the global batch.
    """

    index: int  # type: ignore[assignment]  # hides the method tuple.index, which is not used
    step: int
    batch_index: int


class StepOrder(Sampler[list[Item]]):
    """Endless batches of one process from `first_step` on, one per accumulation step.

    Each epoch is a permutation of the images that depends on (seed, epoch). Batches continue across the end of an
    epoch, so that no image is left out. The global batch is split in order of accumulation step, then process.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        first_step: int,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
    ):
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.accumulation = accumulation
        self.process = process
        self.processes = processes

    def __iter__(self) -> Iterator[list[Item]]:
        share = self.batch_size // (self.accumulation * self.processes)
        epoch = -1
        permutation = array("q")
        for step in itertools.count(self.first_step):
            for part in range(self.accumulation):
                first = (part * self.processes + self.process) * share
                items = []
                for batch_index in range(first, first + share):
                    place = step * self.batch_size + batch_index
                    if place // self.num_images != epoch:
                        epoch = place // self.num_images
                        permutation = array("q", epoch_order(self.num_images, self.seed, epoch))
                    items.append(Item(permutation[place % self.num_images], step, batch_index))
                yield items


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """The permutation of the images in one epoch."""
    return torch.randperm(num_images, generator=keyed_generator(seed, "order", epoch)).tolist()


def in_order(indices: Sequence[int], batch_size: int) -> list[list[Item]]:
    """Split the given image indices into consecutive batches; the last batch may be smaller."""
    items = [Item(index, 0, batch_index) for batch_index, index in enumerate(indices)]
    return [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
