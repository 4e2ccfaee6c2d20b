"""Speed of decoding images and of reading codes, on one CPU core."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from vqvae2.benchmarks.report import Row, conditions
from vqvae2.benchmarks.timing import seconds_per_call
from vqvae2.codes.format import Codes, Header
from vqvae2.codes.store import CodeStore
from vqvae2.codes.writer import CodeWriter
from vqvae2.config import Config, LevelGrid, level_grids
from vqvae2.images.decode import read_image

PHOTOGRAPHS = {"256x256 JPEG": (256, 256), "3-megapixel JPEG": (2048, 1536)}  # (width, height)
QUALITY = 85
FILES = 12  # read in each call
RECORDS = 4000
WRITTEN_AT_A_TIME = 100
CPU = torch.device("cpu")


def measure_images(config: Config, repetitions: int) -> list[Row]:
    """Measure how many images per second one process decodes and resizes to the configured size."""
    rates = decoding_rates(config, PHOTOGRAPHS, repetitions)
    shared = conditions("images", config.images.height_width, 1, "uint8", CPU)
    return [{**shared, "way": f"{way}, one core", "images_per_second": x} for way, x in rates.items()]


def decoding_rates(
    config: Config, sizes: Mapping[str, tuple[int, int]], repetitions: int, count: int = FILES
) -> dict[str, float]:
    """Images per second that one process decodes from JPEG files, `count` of each size (width, height)."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, list[Path]] = {}
        for way, size in sizes.items():
            files[way] = [Path(folder) / f"{way}_{i}.jpg" for i in range(count)]
            for i, path in enumerate(files[way]):
                _photograph(size, seed=i).save(path, quality=QUALITY)
        ways = {way: partial(_read, paths, config) for way, paths in files.items()}
        seconds = seconds_per_call(ways, CPU, repetitions)
    return {way: count / x for way, x in seconds.items()}


def measure_codes(config: Config, repetitions: int) -> list[Row]:
    """Measure how many records per second one process reads in random order, and the bytes per image on disk."""
    shapes = level_grids(config.autoencoder.levels, config.images.height_width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.lmdb"
        writer = CodeWriter(path, Header(shapes, [], RECORDS, "no", ""))
        for first in range(0, RECORDS, WRITTEN_AT_A_TIME):
            writer.write([_record(shapes, i) for i in range(first, first + WRITTEN_AT_A_TIME)])
        writer.close()
        size = sum(file.stat().st_blocks * 512 for file in path.iterdir())
        store = CodeStore(path)
        order = torch.randperm(RECORDS, generator=torch.Generator().manual_seed(0)).tolist()
        ways = {"random reads, one core": lambda: [store[i] for i in order]}
        seconds = seconds_per_call(ways, CPU, repetitions)
    shared = conditions("codes", config.images.height_width, 1, "uint8", CPU)
    return [
        {**shared, "way": way, "images_per_second": RECORDS / x, "bytes_per_image": size / RECORDS}
        for way, x in seconds.items()
    ]


def _record(shapes: list[LevelGrid], index: int) -> Codes:
    codes = {x.name: torch.randint(x.codebook_size, (x.height, x.width)) for x in shapes}
    return Codes(codes, -1, f"class/image_{index:08d}.jpg")


def _photograph(size: tuple[int, int], seed: int) -> Image.Image:
    """Make an image with about as much detail as a photograph: noise at several scales."""
    generator = torch.Generator().manual_seed(seed)
    width, height = size
    pixels = torch.zeros(3, height, width)
    for scale, amplitude in ((64, 60.0), (8, 20.0), (1, 4.0)):
        noise = torch.randn(1, 3, -(-height // scale), -(-width // scale), generator=generator)
        pixels += amplitude * torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0]
    return Image.fromarray((pixels + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy())


def _read(paths: list[Path], config: Config) -> None:
    for path in paths:
        read_image(path, config.images.height_width, config.images.channels)
