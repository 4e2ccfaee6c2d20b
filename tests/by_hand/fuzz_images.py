"""Corrupt image files at random and read them: each read returns pixels or raises a UserError without hanging.

python -m tests.by_hand.fuzz_images --files 500
"""

import io
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae2.errors import UserError
from vqvae2.images.decode import read_image
from vqvae2.run.command_line import parse_options, run

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
MODES = {"JPEG": ("L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "WEBP": ("RGB", "RGBA")}
SLOW_SECONDS = 20


@dataclass(frozen=True)
class Options:
    """Options of the fuzz test.

    Attributes:
        files: number of files to corrupt.
        seed: seed of all random choices.
    """

    files: int = 500
    seed: int = 0


def some_file(choices: random.Random) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a valid image file of random format, mode and content."""
    kind = choices.choice(FORMATS)
    mode = choices.choice(MODES.get(kind, ("L", "P", "RGB")))
    height, width = choices.randint(1, 80), choices.randint(1, 80)
    noise = np.random.default_rng(choices.getrandbits(32)).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise[..., 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(noise).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = choices.randint(1, 8)
    content = io.BytesIO()
    image.save(content, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    return f".{kind.lower()}", content.getvalue()


def spoil(content: bytes, choices: random.Random) -> bytes:
    """Return the content with some bytes changed (most of them near the start), or truncated, or both."""
    spoilt = bytearray(content)
    for _ in range(choices.choice((0, 1, 4, 20))):
        reach = choices.choice((64, len(spoilt)))
        spoilt[choices.randrange(min(reach, len(spoilt)))] = choices.randrange(256)
    return bytes(spoilt[: choices.randrange(len(spoilt))] if choices.random() < 0.5 else spoilt)


def fuzz(files: int, seed: int, folder: Path) -> Counter[str]:
    """Read corrupted files and count how many gave pixels and how many an error message."""
    choices = random.Random(seed)
    found: Counter[str] = Counter()
    for i in range(files):
        suffix, content = some_file(choices)
        path = folder / f"{i}{suffix}"
        path.write_bytes(spoil(content, choices))
        began = time.monotonic()
        try:
            assert read_image(path, (16, 24), 3).shape == (3, 16, 24)
            found["pixels"] += 1
        except UserError as error:
            assert str(path) in str(error)
            found["message"] += 1
        assert time.monotonic() - began < SLOW_SECONDS, f"{path}: reading took longer than {SLOW_SECONDS} s"
    return found


def main() -> None:
    options = parse_options(Options, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        print(dict(fuzz(options.files, options.seed, Path(folder))))


if __name__ == "__main__":
    run(main)
