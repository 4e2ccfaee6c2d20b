"""Reading of a code store."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from operator import index as whole_number
from pathlib import Path

import lmdb
import numpy as np

from vqvae2.codes.environments import get, get_all, open_to_read, read_header
from vqvae2.codes.format import Codes, code_type, key_of, unpack_record
from vqvae2.errors import UserError

READERS = 4  # threads that read at a time; they wait where the store is larger than the page cache


class CodeStore:
    """A read-only sequence of the `Codes` of all images in a code store, with `len`, indexing and iteration.

    The LMDB environment is opened at the first access in each process, since LMDB does not allow an environment
    to be used across a fork.

    Raises:
        UserError: the store is missing, incomplete or damaged, or is not a code store.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._opened: tuple[int, lmdb.Environment] | None = None
        self._indices: dict[str, int] | None = None  # by name; filled by the first call of `find`
        self.header = read_header(self.path)
        written = self._environment().stat()["entries"] - 1
        self.close()
        if written < self.header.count:
            raise UserError(
                f"{self.path}: holds {written} of {self.header.count} images: run stage 2 again to add the others"
            )

    def __len__(self) -> int:
        return self.header.count

    def __getitem__(self, index: int) -> Codes:
        index = whole_number(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: index {index} is out of range for {len(self)} images")
        index %= len(self)
        return unpack_record(self.path, index, get(self._environment(), key_of(index)), self.header.levels)

    def read(self, indices: Sequence[int], threads: Executor) -> list[Codes]:
        """Return several records; READERS of the threads wait for the disk at the same time."""
        parts = [indices[first::READERS] for first in range(READERS)]
        contents: list[bytes | None] = [None] * len(indices)
        for first, part in enumerate(threads.map(partial(get_all, self._environment()), parts)):
            contents[first::READERS] = part
        pairs = zip(indices, contents, strict=True)
        return [unpack_record(self.path, index, content, self.header.levels) for index, content in pairs]

    def __iter__(self) -> Iterator[Codes]:
        return (self[i] for i in range(len(self)))

    def find(self, name: str) -> Codes:
        """Return the record of the image with this name. The first call reads all records.

        Raises:
            KeyError: no image has this name.
        """
        if self._indices is None:
            self._indices = {record.name: i for i, record in enumerate(self)}
        return self[self._indices[name]]

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Return all N records as arrays: the codes of each level (N, H, W) in their stored type, `labels`, `names`."""
        records = list(self)
        arrays = {
            level.name: np.stack([record.codes[level.name].numpy() for record in records]).astype(
                code_type(level.codebook_size)
            )
            for level in self.header.levels
        }
        labels = np.array([record.label for record in records], dtype=np.int64)
        return {**arrays, "labels": labels, "names": np.array([record.name for record in records])}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}

    def close(self) -> None:
        """Release the file. It is closed when no reader uses it, and opened again when needed."""
        self._opened = None

    def _environment(self) -> lmdb.Environment:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_to_read(self.path))
        return self._opened[1]
