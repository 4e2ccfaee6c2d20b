"""What a store of codes holds: a header in JSON, and a record for each image with its codes, its label and its name.

A record is: CRC-32 of what follows (4 bytes), label (4 bytes, signed, -1 for none), length of
the name (2 bytes), the name in UTF-8, then each level's codes row by row in the smallest
unsigned type that holds K - 1; numbers little-endian. Its key is its index, 8 bytes, big-endian.
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

    levels: list[LevelGrid]
    classes: list[str]
    count: int
    precision: str
    autoencoder_sha256: str

    def to_json(self) -> bytes:
        """As stored."""
        levels = [grid._asdict() for grid in self.levels]
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
        return Header(**{**fields, "levels": [LevelGrid(**grid) for grid in fields["levels"]]})


def code_type(codebook_size: int) -> np.dtype:
    """The smallest unsigned type that holds codebook_size - 1, little-endian."""
    return np.min_scalar_type(codebook_size - 1).newbyteorder("<")


def pack(record: Codes, levels: list[LevelGrid]) -> bytes:
    """A record as bytes."""
    name = record.name.encode("utf-8", "surrogateescape")
    arrays = [record.codes[x.name].cpu().numpy().astype(code_type(x.codebook_size)) for x in levels]
    body = PREFIX.pack(0, record.label, len(name))[4:] + name + b"".join(x.tobytes() for x in arrays)
    return struct.pack("<I", zlib.crc32(body)) + body


def unpack(content: bytes, levels: list[LevelGrid]) -> Codes:
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


def key_of(index: int) -> bytes:
    """The key of the record of image `index`."""
    return index.to_bytes(8, "big")
