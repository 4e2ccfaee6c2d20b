"""Step-indexed order: which images form the batch of a step is a function of (seed, step) alone."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from vqvae2.run.seeding import keyed_generator


class Item(NamedTuple):
    """One place in a batch: which image, at which step, and where in the global batch."""

    index: int
    step: int
    batch_index: int


class StepOrder(Sampler[list[Item]]):
    """Batches of one process from `first_step` on without end, one for each accumulation step.

    The images follow one another in a permutation for each epoch, drawn from
    (seed, epoch); batches run across its end, so that no image is left out. The
    global batch is dealt out in order: accumulation step, process, place.
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
        epoch, permutation = -1, None
        for step in itertools.count(self.first_step):
            for part in range(self.accumulation):
                first = (part * self.processes + self.process) * share
                items = []
                for batch_index in range(first, first + share):
                    place = step * self.batch_size + batch_index
                    if place // self.num_images != epoch:
                        epoch = place // self.num_images
                        permutation = epoch_order(self.num_images, self.seed, epoch)
                    items.append(Item(permutation[place % self.num_images], step, batch_index))
                yield items


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """The permutation of the images in one epoch."""
    return torch.randperm(num_images, generator=keyed_generator(seed, "order", epoch)).tolist()


def in_order(indices: Sequence[int], batch_size: int) -> list[list[Item]]:
    """Batches of the given images one after the other, the last one as short as it comes."""
    items = [Item(index, 0, batch_index) for batch_index, index in enumerate(indices)]
    return [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
