"""Reading the codes of a set of images."""

import os
from collections.abc import Iterator
from operator import index as whole_number
from pathlib import Path

import lmdb
import numpy as np

from vqvae2.codes.environments import get, open_to_read, read_header
from vqvae2.codes.format import Codes, code_type, key_of, unpack
from vqvae2.errors import UserError


class CodeStore:
    """Read-only access to a store: `len`, indexing and iteration give `Codes`.

    The LMDB environment is opened at the first access in each process, since
    LMDB forbids carrying one over a fork.

    Raises:
        UserError: no such store, a foreign or damaged one, or one whose writer has not finished.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._opened: tuple[int, lmdb.Environment] | None = None
        self._indices: dict[str, int] | None = None  # by name, once they were asked for
        self.header = read_header(self.path)
        written = self._environment().stat()["entries"] - 1
        self.close()
        if written < self.header.count:
            raise UserError(
                f"{self.path}: holds {written} of {self.header.count} images: run stage 2 again, it goes on from there"
            )

    def __len__(self) -> int:
        return self.header.count

    def __getitem__(self, index: int) -> Codes:
        index = whole_number(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: image {index} of {len(self)}")
        index %= len(self)
        content = get(self._environment(), key_of(index))
        try:
            return unpack(content or b"", self.header.levels)
        except ValueError as error:
            raise UserError(
                f"{self.path}: the record of image {index} is damaged ({error}): delete the store and run stage 2 again"
            ) from error

    def __iter__(self) -> Iterator[Codes]:
        return (self[i] for i in range(len(self)))

    def find(self, name: str) -> Codes:
        """The record of the image of that name; a KeyError where there is none. The first call reads all names."""
        if self._indices is None:
            self._indices = {record.name: i for i, record in enumerate(self)}
        return self[self._indices[name]]

    def to_numpy(self) -> dict[str, np.ndarray]:
        """All records as arrays: each level's codes (N, H, W) in the type they are stored in, `labels` and `names`."""
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
        """Let go of the file, which closes with its last user; it is opened again when needed."""
        self._opened = None

    def _environment(self) -> lmdb.Environment:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_to_read(self.path))
        return self._opened[1]
