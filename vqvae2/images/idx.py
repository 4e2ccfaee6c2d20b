"""The idx files of MNIST and of data sets in its format: images and labels in two files each, gzipped or not."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from vqvae2.errors import UserError

KIN = ("MNIST", "FashionMNIST", "KMNIST")  # torchvision's data sets whose files have these names
PREFIXES = {"train": "train", "validation": "t10k"}
SUFFIXES = {"images": "images-idx3-ubyte", "labels": "labels-idx1-ubyte"}
UNSIGNED_BYTES = 8  # type code in the header; the only one in use


def idx_folder(name: str, root: str | None) -> Path | None:
    """The folder that holds the idx files of one of KIN: `root`, or NAME/raw in it; None if there are no such files."""
    if name not in KIN or root is None:
        return None
    folders = (Path(root), Path(root) / name / "raw")
    return next((x for x in folders if _existing(x, PREFIXES["train"], SUFFIXES["images"]) is not None), None)


def read_idx(folder: Path, part: str) -> tuple[np.ndarray, list[int]]:
    """Read the images, uint8 (N, height, width), and the labels of a part, `train` or `validation`.

    Raises:
        UserError: a file is missing or damaged, or there are not as many labels as images.
    """
    arrays = {}
    for kind, suffix in SUFFIXES.items():
        path = _existing(folder, PREFIXES[part], suffix)
        if path is None:
            raise UserError(f"{folder}: {PREFIXES[part]}-{suffix} or {PREFIXES[part]}-{suffix}.gz not found: add it")
        arrays[kind] = _read(path, dimensions=3 if kind == "images" else 1)
    images, labels = arrays["images"], arrays["labels"].tolist()
    if len(images) != len(labels):
        raise UserError(
            f"{folder}: {len(images)} images but {len(labels)} labels of {PREFIXES[part]}: replace the files"
        )
    return images, labels


def _existing(folder: Path, prefix: str, suffix: str) -> Path | None:
    return next((x for x in (folder / f"{prefix}-{suffix}", folder / f"{prefix}-{suffix}.gz") if x.is_file()), None)


def _read(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file: two zero bytes, type, number of dimensions, each size as big-endian uint32, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}): replace the file") from error
    header = 4 + 4 * dimensions
    sizes = np.frombuffer(content[4:header], ">u4").astype(int).tolist()
    expected = bytes((0, 0, UNSIGNED_BYTES, dimensions))
    if content[:4] != expected or len(sizes) != dimensions or len(content) != header + np.prod(sizes, dtype=int):
        raise UserError(f"{path}: not an idx file of {dimensions} dimensions of bytes, or incomplete: replace the file")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
