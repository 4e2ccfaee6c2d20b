"""Sequences of names that processes and loader workers share instead of copying them.

A list of strings is copied into every worker: reading a string changes its reference count, and with it its page of
memory. Bytes and offsets are only read.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

ENCODING = ("utf-8", "surrogateescape")  # as file names are decoded


class _Texts(Sequence[str]):
    """A sequence of strings that is equal to any other sequence of the same strings."""

    __hash__ = None  # type: ignore[assignment]  # as for a list

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(x == y for x, y in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} names>"


class Names(_Texts):
    """N strings in one block of UTF-8.

    Args:
        text: bytes of all strings, one after the other, uint8.
        ends: end of each string in `text`, int64 (N,).
        source: safetensors file and prefix of the tensors that `text` and `ends` are mapped from; a worker process
            that is not forked maps the file again.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray, source: tuple[Path, str] | None = None):
        self._text = text.data
        self._ends = ends.data
        self._source = source

    @staticmethod
    def of(names: Iterable[str]) -> "Names":
        """Pack strings."""
        text, ends = bytearray(), array("q")
        for name in names:
            text += name.encode(*ENCODING)
            ends.append(len(text))
        return Names(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))

    @staticmethod
    def mapped(path: Path, prefix: str) -> "Names":
        """Map the names in a safetensors file that holds `arrays` with a prefix into memory."""
        with safe_open(path, "pt") as file:  # PyTorch's tensors are mapped, NumPy's arrays are read
            text, ends = (file.get_tensor(f"{prefix}_{part}").numpy() for part in ("text", "ends"))
        return Names(text, ends, (path, prefix))

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays to write to a safetensors file."""
        return {f"{prefix}_text": np.asarray(self._text), f"{prefix}_ends": np.asarray(self._ends)}

    def same_as(self, other: "Names") -> bool:
        """Whether both hold the same strings; faster than `==`."""
        return self._ends == other._ends and self._text == other._text

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        return str(self._text[self._ends[index - 1] if index else 0 : self._ends[index]], *ENCODING)

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield str(self._text[start:end], *ENCODING)
            start = end

    def __reduce__(self) -> tuple:
        if self._source:
            return Names.mapped, self._source
        return Names, (np.asarray(self._text), np.asarray(self._ends))


class Chosen(_Texts):
    """The names at the given indices of another sequence."""

    def __init__(self, names: Sequence[str], indices: Sequence[int]):
        self._names = names
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        return self._names[self._indices[index]]

    def __iter__(self) -> Iterator[str]:
        return (self._names[i] for i in self._indices)


class WithCopies(_Texts):
    """The names of images, followed by those of copies of all images, which end in one of `suffixes`."""

    def __init__(self, names: Sequence[str], suffixes: Sequence[str]):
        self._names = names
        self._suffixes = ("", *suffixes)

    def __len__(self) -> int:
        return len(self._suffixes) * len(self._names)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        copy, original = divmod(range(len(self))[index], len(self._names))
        return self._names[original] + self._suffixes[copy]

    def __iter__(self) -> Iterator[str]:
        return (name + suffix for suffix in self._suffixes for name in self._names)
