"""Loading of batches of codes for training and validation."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqvae2.codes.store import READERS, CodeStore
from vqvae2.training.order import Item

Loaded = tuple[dict[str, Tensor], int, int]


class CodeBatch(NamedTuple):
    """A part of a global batch.

    Attributes:
        codes: codes of each level by name, int64 (B, H, W).
        labels: class indices, int64 (B,); -1 if there are no classes.
        batch_indices: batch index of each image, int64 (B,).
    """

    codes: dict[str, Tensor]
    labels: Tensor
    batch_indices: Tensor


class _Records(Dataset[Loaded]):
    def __init__(self, store: CodeStore, readers: ThreadPoolExecutor):
        self.store = store
        self.readers = readers

    def __getitem__(self, item: Item) -> Loaded:
        record = self.store[item.index]
        return record.codes, record.label, item.batch_index

    def __getitems__(self, items: list[Item]) -> list[Loaded]:
        records = self.store.read([item.index for item in items], self.readers)
        return [(x.codes, x.label, item.batch_index) for x, item in zip(records, items, strict=True)]


def _collate(items: list[Loaded]) -> CodeBatch:
    codes, labels, batch_indices = zip(*items, strict=True)
    stacked = {name: torch.stack([x[name] for x in codes]) for name in codes[0]}
    return CodeBatch(stacked, torch.tensor(labels), torch.tensor(batch_indices))


def load_code_batches(store: CodeStore, order: Iterable[list[Item]]) -> Iterator[CodeBatch]:
    """Yield the batches that `order` lists.

    The training process loads them itself, since reading codes takes little time. Threads read the records of a batch.
    """
    with ThreadPoolExecutor(READERS, "codes") as readers:
        records = _Records(store, readers)
        yield from DataLoader(records, batch_sampler=order, collate_fn=_collate, pin_memory=torch.cuda.is_available())
