"""Sampled images as files in a run's folder samples/."""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from vqvae2.errors import StoppedError, UserError
from vqvae2.generation.controls import at_least, controls_of
from vqvae2.generation.generator import Generator
from vqvae2.images.grids import save_grid, save_image
from vqvae2.prior.kept import Kept
from vqvae2.run.directory import make_dir, writing
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.stopping import StopRequests

GRID_IMAGES = 64  # a grid shows no more


class Written(NamedTuple):
    """Sampled images as files.

    Attributes:
        paths: of the images.
        labels: class index of each, (N,), -1 for none; None where there are no classes.
        grid: of the picture that shows the first ones together.
    """

    paths: list[Path]
    labels: torch.Tensor | None
    grid: Path


class Start(NamedTuple):
    """What samples begin from: a name for their files, and the codes of one image that they keep, by level."""

    name: str
    kept: dict[str, Kept]


def start_from(
    generator: Generator, complete: str | None, keep: str, resample: str | None, image: str | None
) -> Start | None:
    """What the flags of sample.py ask to begin from; None where they ask for nothing.

    Args:
        generator: of a finished run.
        complete: an image file, of which the region `keep` stays.
        keep: see `Generator.complete`.
        resample: the coarsest level that is drawn anew, of `image`.
        image: an image file.

    Raises:
        UserError: the flags do not go together, or the image cannot be read.
    """
    if complete and resample:
        raise UserError("complete, resample: give one of them")
    if (resample is None) != (image is None):
        raise UserError("resample, image: give both: the level to draw anew, and the image whose coarser codes stay")
    if complete:
        pixels = generator.read_image(complete)
        name = f"complete-{_image_name(complete, pixels)}_keep-{keep.replace(',', '-')}"
        return Start(name, generator.kept_region(pixels, keep))
    if resample and image:
        pixels = generator.read_image(image)
        return Start(f"resample-{resample}_{_image_name(image, pixels)}", generator.kept_coarser(pixels, resample))
    return None


def _image_name(path: str, pixels: torch.Tensor) -> str:
    """The file's name and eight digits of its pixels as the run sees them."""
    return f"{Path(path).stem}-{hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:8]}"


def write_samples(
    generator: Generator,
    num_images: int,
    label: str | None,
    controls: dict[str, Any],
    seed: int,
    batch_size: int,
    state: PartialState,
    start: Start | None = None,
    folder: Path | None = None,
) -> Written:
    """Sample images 0..num_images-1 of a seed into a folder, one PNG each, and a grid of the first ones.

    The batches are dealt out to the processes; a batch whose files are all there is not made again.

    Args:
        generator: of a finished run.
        num_images: how many images.
        label: a class by name or index, none, or None for classes drawn from the training frequencies.
        controls: temperature, top_k, top_p and guidance, as `Generator.sample` takes them.
        seed: of the random numbers.
        batch_size: images made at a time by a process.
        state: which process this is.
        start: an image's codes that every sample keeps; None: all codes are drawn.
        folder: where the files go; None: the run's samples/.

    Raises:
        StoppedError: a signal asked for it, or the launcher is gone; finished batches are kept.
    """
    at_least("num_images", num_images, 1)
    at_least("batch_size", batch_size, 1)
    at_least("seed", seed, 0)
    labels = generator.labels(label, range(num_images), seed, controls["guidance"])
    for name in generator.autoencoder.names:
        controls_of(name, **controls)
    directory = make_dir(folder or generator.run_dir / "samples")
    stem = _stem(label, controls, seed, batch_size, generator, start)
    paths = [directory / f"{stem}_{i:06d}{_class_suffix(labels, i, generator)}.png" for i in range(num_images)]

    batches = [range(i, min(i + batch_size, num_images)) for i in range(0, num_images, batch_size)]
    mine = [
        batch
        for batch in batches[state.process_index :: state.num_processes]
        if not all(paths[i].exists() for i in batch)
    ]
    codes = sum(prior.grid.height * prior.grid.width for prior in generator.priors.values())
    bar = tqdm(total=len(mine) * codes, desc="sampling", unit="code", disable=not state.is_main_process)
    with refusals_reach_all(state), bar, StopRequests() as requests:
        for batch in mine:
            images = generator.sample(
                len(batch),
                label,
                **controls,
                seed=seed,
                first_image=batch[0],
                batch_size=batch_size,
                kept=start.kept if start else None,
                progress=bar.update,
            )
            with writing(directory):
                for i, image in zip(batch, images, strict=True):
                    beside = paths[i].with_suffix(".partial.png")
                    save_image(image, beside)
                    os.replace(beside, paths[i])
            if reason := requests.reason():
                raise StoppedError(f"{directory}: stopped by {reason}; finished batches are kept")

    grid = directory / f"grid_{stem}.png"
    with refusals_reach_all(state):
        if state.is_main_process:
            with writing(grid):
                save_samples_grid(paths, grid)
    return Written(paths, labels, grid)


def save_samples_grid(paths: list[Path], grid: Path) -> None:
    """The first GRID_IMAGES of the images at `paths` as one PNG."""
    shown = [read_sample(path) for path in paths[:GRID_IMAGES]]
    save_grid(torch.stack(shown), grid, columns=int(np.ceil(np.sqrt(len(shown)))))


def read_sample(path: Path) -> torch.Tensor:
    """A sampled image as it was made: uint8 (C, H, W)."""
    with Image.open(path) as image:
        pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def _stem(
    label: str | None, controls: dict[str, Any], seed: int, batch_size: int, generator: Generator, start: Start | None
) -> str:
    """Tells apart what was sampled from other weights, with other controls, or with other rounding."""
    neutral = {"temperature": 1.0, "top_k": None, "top_p": None, "guidance": 1.0}
    parts = (
        ([start.name] if start else [])
        + [f"seed{seed}"]
        + ([f"label-{label}".replace("/", "-")] if label is not None else [])
    )
    parts += [f"{key}{value}" for key, value in controls.items() if value != neutral[key]]
    parts += [str(generator.dtype).removeprefix("torch."), f"batch{batch_size}"]
    return "_".join([*parts, generator.fingerprint()])


def _class_suffix(labels: torch.Tensor | None, i: int, generator: Generator) -> str:
    return "" if labels is None or labels[i] < 0 else "_" + generator.classes[labels[i]].replace("/", "-")
