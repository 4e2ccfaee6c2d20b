"""MNIST and data sets in its format, read from idx files."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.sources import open_images

GENERATOR = np.random.default_rng(0)
PIXELS = {
    "train": GENERATOR.integers(0, 256, (7, 28, 28), np.uint8),
    "t10k": GENERATOR.integers(0, 256, (3, 28, 28), np.uint8),
}
LABELS = {"train": np.array([5, 0, 4, 1, 9, 2, 1], np.uint8), "t10k": np.array([7, 2, 1], np.uint8)}


def idx(array: np.ndarray) -> bytes:
    """The content of an idx file of bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write(folder: Path, zipped: bool) -> Path:
    """Write the four files of a small data set."""
    folder.mkdir(parents=True)
    for part in PIXELS:
        for name, array in (("images-idx3-ubyte", PIXELS[part]), ("labels-idx1-ubyte", LABELS[part])):
            content = gzip.compress(idx(array)) if zipped else idx(array)
            (folder / f"{part}-{name}{'.gz' if zipped else ''}").write_bytes(content)
    return folder


def config(root: Path, source: str = "torchvision:MNIST") -> ImagesConfig:
    return ImagesConfig(source=source, root=str(root), size=28, channels=1, horizontal_flip=False)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_files_are_read_from_the_root_or_torchvisions_folder(tmp_path: Path, zipped: bool, below: str) -> None:
    """Pixels and labels are those of the files, which may hold any number of images; classes are torchvision's."""
    write(tmp_path / "data" / below, zipped)
    splits = open_images(config(tmp_path / "data", "torchvision:FashionMNIST"), seed=0)
    for images, part in zip(splits, PIXELS, strict=True):
        assert list(images.labels) == LABELS[part].tolist()
        assert all(np.array_equal(images.load(i)[0].numpy(), x) for i, x in enumerate(PIXELS[part]))
    assert splits.train.classes[0] == "T-shirt/top" and len(splits.train.classes) == 10


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """The message names the file or what is missing."""
    for name, content, message in (
        ("t10k-images-idx3-ubyte.gz", b"no gzip", "t10k-images-idx3-ubyte.gz: cannot be read"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS["t10k"])[:-1]), "not an idx file of 3 dimensions"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS["train"])), "3 images but 7 labels"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.array([1, 2, 10], np.uint8))), "label 10 is not valid"),
        ("t10k-labels-idx1-ubyte.gz", None, "t10k-labels-idx1-ubyte.gz not found"),
    ):
        folder = write(tmp_path / message.replace(":", "")[:20].replace("/", ""), zipped=True)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_images(config(folder), seed=0)
