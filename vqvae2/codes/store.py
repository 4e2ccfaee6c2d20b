"""An LMDB of codes: a header in JSON, and one record for each image with all levels' codes, its label and its name.

A record is: CRC-32 of what follows (4 bytes), label (4 bytes, signed, -1 for none), length of
the name (2 bytes), the name in UTF-8, then each level's codes row by row in the smallest
unsigned type that holds K - 1; numbers little-endian. Its key is its index, 8 bytes, big-endian.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import index as whole_number
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import lmdb
import numpy as np
import torch
from torch import Tensor

from vqvae2.config import LevelShape
from vqvae2.errors import UserError
from vqvae2.run_directory import make_dir

FORMAT = "vqvae2 codes"
FORMAT_VERSION = 1
HEADER_KEY = b"header"
PREFIX = struct.Struct("<IiH")
FIRST_MAP_BYTES = 2**26


class Codes(NamedTuple):
    """One image's record.

    Attributes:
        codes: by level, (H, W) int64.
        label: class index, -1 for none.
        name: of the image.
    """

    codes: dict[str, Tensor]
    label: int
    name: str


@dataclass(frozen=True)
class Header:
    """What a store says about all its records.

    Attributes:
        levels: grid and codebook size of each level, coarsest first.
        classes: names of the classes, in the order of the labels.
        count: number of images when complete.
        precision: no, bf16 or fp16: what the encoder computed in.
        autoencoder_sha256: of the weights that made the codes.
    """

    levels: list[LevelShape]
    classes: list[str]
    count: int
    precision: str
    autoencoder_sha256: str

    def to_json(self) -> bytes:
        """As stored."""
        levels = [shape._asdict() for shape in self.levels]
        return json.dumps(
            {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self), "levels": levels}
        ).encode()

    @staticmethod
    def from_json(content: bytes | None, path: Path) -> "Header":
        """As read from the store at `path`; a UserError where it is not one of ours."""
        try:
            fields = json.loads(content or b"")
            if fields.pop("format") != FORMAT:
                raise ValueError("another program's")
            version = fields.pop("format_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a store of codes (its header is missing or foreign): run stage 2 into another folder"
            ) from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {version}, and this program reads {FORMAT_VERSION}: "
                "delete it and run stage 2 again"
            )
        return Header(**{**fields, "levels": [LevelShape(**shape) for shape in fields["levels"]]})


def code_type(codebook_size: int) -> np.dtype:
    """The smallest unsigned type that holds codebook_size - 1, little-endian."""
    return np.min_scalar_type(codebook_size - 1).newbyteorder("<")


def pack(record: Codes, levels: list[LevelShape]) -> bytes:
    """A record as bytes."""
    name = record.name.encode("utf-8", "surrogateescape")
    arrays = [record.codes[x.name].cpu().numpy().astype(code_type(x.codebook_size)) for x in levels]
    body = PREFIX.pack(0, record.label, len(name))[4:] + name + b"".join(x.tobytes() for x in arrays)
    return struct.pack("<I", zlib.crc32(body)) + body


def unpack(content: bytes, levels: list[LevelShape]) -> Codes:
    """Bytes as a record; a ValueError where they are damaged."""
    if len(content) < PREFIX.size:
        raise ValueError("too short")
    checksum, label, name_length = PREFIX.unpack_from(content)
    if zlib.crc32(content[4:]) != checksum:
        raise ValueError("its checksum does not match")
    offset = PREFIX.size + name_length
    name = content[PREFIX.size : offset].decode("utf-8", "surrogateescape")
    codes = {}
    for level in levels:
        stored = np.frombuffer(content, code_type(level.codebook_size), level.height * level.width, offset)
        codes[level.name] = torch.from_numpy(stored.astype(np.int64)).view(level.height, level.width)
        offset += stored.nbytes
    return Codes(codes, label, name)


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")


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
        content = _get(self._environment(), _key(index))
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
            self._opened = (os.getpid(), _open(self.path))
        return self._opened[1]


# LMDB allows a process to open a file once, so that its readers share what is open: by process and file.
_environments: WeakValueDictionary[tuple[int, int, int], lmdb.Environment] = WeakValueDictionary()


def _open(path: Path) -> lmdb.Environment:
    if not path.exists():
        raise UserError(f"{path}: no codes there: run stage 2 first")
    for other, inherited in list(_environments.items()):
        if other[0] != os.getpid():
            inherited.close()  # this process's copy, from before a fork; the parent keeps its own
    file = _file(path)
    key = (os.getpid(), file.st_dev, file.st_ino)
    environment = _environments.get(key)
    if environment is None:
        with _opening(path):
            environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir())
        _refuse_cut_off(environment, path)
        _environments[key] = environment
    return environment


def _file(path: Path) -> os.stat_result:
    file = path / "data.mdb" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{path}: not a store of codes ({file.name} is missing): run stage 2 into another folder")
    return file.stat()


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        raise UserError(
            f"{path}: cannot be opened ({error}): if it is damaged, delete it and run stage 2 again"
        ) from error


def _refuse_cut_off(environment: lmdb.Environment, path: Path) -> None:
    """LMDB maps the file into memory: reading past its end would kill the process."""
    pages = environment.info()["last_pgno"] + 1
    if _file(path).st_size < pages * environment.stat()["psize"]:
        environment.close()
        raise UserError(f"{path}: cut off, its end is missing: delete it and run stage 2 again")


def _get(environment: lmdb.Environment, key: bytes) -> bytes | None:
    with environment.begin() as transaction:
        return transaction.get(key)


def read_header(path: Path) -> Header:
    """The header of a store, finished or not."""
    try:
        content = _get(_open(path), HEADER_KEY)
    except lmdb.Error as error:
        raise UserError(f"{path}: cannot be read ({error}): delete it and run stage 2 again") from error
    return Header.from_json(content, path)


class CodeWriter:
    """Writes a store from its first missing record on; each `write` is one durable transaction."""

    def __init__(self, path: Path, header: Header):
        """Begin a store, or go on with one that has the same header.

        Raises:
            UserError: the store there was made from something else.
        """
        self.path = path
        self.header = header
        make_dir(path)
        with _opening(path):
            self._environment = lmdb.open(str(path), map_size=FIRST_MAP_BYTES)
        _refuse_cut_off(self._environment, path)
        with self._environment.begin() as transaction:
            stored = transaction.get(HEADER_KEY)
            entries = transaction.stat()["entries"]
        if stored is None and entries == 0:
            self._put([(HEADER_KEY, header.to_json())])
        elif stored != header.to_json():
            self._environment.close()
            refuse_other_codes(path, Header.from_json(stored, path), header)
        self.written = self._environment.stat()["entries"] - 1

    def write(self, records: list[Codes]) -> None:
        """Append records."""
        self._put([(_key(self.written + i), pack(record, self.header.levels)) for i, record in enumerate(records)])
        self.written += len(records)

    def _put(self, items: list[tuple[bytes, bytes]]) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in items:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.DiskError as error:
                raise UserError(
                    f"{self.path}: cannot be written ({error}): free the space and run stage 2 again"
                ) from error

    def close(self) -> None:
        """Close the file."""
        self._environment.close()


def refuse_other_codes(path: Path, stored: Header, header: Header) -> None:
    """Say how the store at `path` differs from what is to be written."""
    changed = [key for key in asdict(header) if getattr(stored, key) != getattr(header, key)]
    values = "; ".join(f"{key} was {getattr(stored, key)!r} and is now {getattr(header, key)!r}" for key in changed)
    raise UserError(f"{path}: these codes were made differently: {values}: delete {path.parent} or use another run_dir")
