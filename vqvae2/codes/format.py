"""The format of a code store: a JSON header, and one record per image with its codes, label and name.

A record consists of: CRC-32 of the rest of the record (4 bytes), label (4 bytes, signed, -1 if there are no classes),
length of the name in bytes (2 bytes), the name in UTF-8, then the codes of each level row by row in the smallest
unsigned type that holds K - 1. Numbers are little-endian. The key of a record is its index (8 bytes, big-endian).
"""

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqvae2.config import LevelGrid
from vqvae2.errors import UserError

FORMAT = "vqvae2 codes"
FORMAT_VERSION = 1
HEADER_KEY = b"header"
PREFIX = struct.Struct("<IiH")


class Codes(NamedTuple):
    """The record of one image.

    Attributes:
        codes: codes of each level by name, (H, W) int64.
        label: class index, -1 if there are no classes.
        name: name of the image.
    """

    codes: dict[str, Tensor]
    label: int
    name: str


@dataclass(frozen=True)
class Header:
    """The header of a code store.

    Attributes:
        levels: grid and codebook size of each level, coarsest first.
        classes: names of the classes, in the order of the labels.
        count: number of images in the complete store.
        precision: mixed precision of the encoder: no, bf16 or fp16.
        autoencoder_sha256: SHA-256 of the weights of the autoencoder that encoded the images.
    """

    levels: list[LevelGrid]
    classes: list[str]
    count: int
    precision: str
    autoencoder_sha256: str

    def to_json(self) -> bytes:
        """Return the header as it is stored."""
        levels = [grid._asdict() for grid in self.levels]
        return json.dumps(
            {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self), "levels": levels}
        ).encode()

    @staticmethod
    def from_json(content: bytes | None, path: Path) -> "Header":
        """Parse the header of the store at `path`.

        Raises:
            UserError: the header is missing, is not that of a code store, or has another format version.
        """
        try:
            fields = json.loads(content or b"")
            if fields.pop("format") != FORMAT:
                raise ValueError("unknown format")
            version = fields.pop("format_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a code store (its header is missing or invalid): run stage 2 with another run_dir"
            ) from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {version} is not supported, only {FORMAT_VERSION}: "
                "delete it and run stage 2 again"
            )
        return Header(**{**fields, "levels": [LevelGrid(**grid) for grid in fields["levels"]]})


def code_type(codebook_size: int) -> np.dtype:
    """Return the smallest unsigned little-endian type that holds codebook_size - 1."""
    return np.min_scalar_type(codebook_size - 1).newbyteorder("<")


def pack(record: Codes, levels: list[LevelGrid]) -> bytes:
    """Convert a record to bytes."""
    name = record.name.encode("utf-8", "surrogateescape")
    arrays = [record.codes[x.name].cpu().numpy().astype(code_type(x.codebook_size)) for x in levels]
    body = PREFIX.pack(0, record.label, len(name))[4:] + name + b"".join(x.tobytes() for x in arrays)
    return struct.pack("<I", zlib.crc32(body)) + body


def unpack(content: bytes, levels: list[LevelGrid]) -> Codes:
    """Convert bytes to a record.

    Raises:
        ValueError: the bytes are damaged.
    """
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


def unpack_record(path: Path, index: int, content: bytes | None, levels: list[LevelGrid]) -> Codes:
    """Convert the bytes of a record of the store at `path`.

    Raises:
        UserError: the record is missing or damaged.
    """
    try:
        return unpack(content or b"", levels)
    except ValueError as error:
        raise UserError(
            f"{path}: the record of image {index} is damaged ({error}): delete the store and run stage 2 again"
        ) from error


def key_of(index: int) -> bytes:
    """Return the key of the record of image `index`."""
    return index.to_bytes(8, "big")
