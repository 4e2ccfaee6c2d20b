"""Write sampled images to files, by default in the samples/ folder of the run."""

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
from vqvae2.images.masks import is_mask_file, read_mask
from vqvae2.prior.kept import Kept
from vqvae2.run.directory import make_dir, writing
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.stopping import StopRequests

LONGEST_NAME = 40  # bytes of a class or an image file in the name of a sample's file, which may have 255 in all
GRID_IMAGES = 64  # maximum number of images in an image grid


class Written(NamedTuple):
    """Files of sampled images.

    Attributes:
        paths: paths of the images.
        labels: class index of each image, (N,), -1 for none; None if the run has no classes.
        grid: path of the image grid that shows the first images together.
    """

    paths: list[Path]
    labels: torch.Tensor | None
    grid: Path


class Start(NamedTuple):
    """What sampling starts from.

    Attributes:
        name: a name for the files.
        kept: the kept codes of one image by level.
        particles: number of particles per image, see `Generator.complete`.
    """

    name: str
    kept: dict[str, Kept]
    particles: int = 1


def start_from(
    generator: Generator, complete: str | None, keep: str, resample: str | None, image: str | None, particles: int = 1
) -> Start | None:
    """Build the start that the flags of sample.py describe; None if all codes are to be sampled.

    Args:
        generator: generator of a finished run.
        complete: an image file whose region `keep` is kept.
        keep: a region as for `Generator.complete`, or the path of a mask that is white where the image is kept.
        resample: the coarsest level that is sampled; the coarser codes of `image` are kept.
        image: an image file, for `resample`.
        particles: number of particles per image, for `complete`.

    Raises:
        UserError: the flags cannot be combined, or the image cannot be read.
    """
    if complete and resample:
        raise UserError("complete, resample: give only one of them")
    if (resample is None) != (image is None):
        raise UserError("resample, image: give both: the level to sample, and the image whose coarser codes are kept")
    at_least("particles", particles, 1)
    if particles > 1 and not complete:
        raise UserError(f"particles: {particles} is not valid without complete: give an image to complete, or use 1")
    if complete:
        pixels = generator.read_image(complete)
        size = (pixels.shape[2], pixels.shape[3])
        region: str | torch.Tensor = read_mask(Path(keep), Path(complete), size) if is_mask_file(keep) else keep
        name = f"complete-{_image_name(complete, pixels)}_keep-{_region_name(region)}"
        name += f"_particles{particles}" if particles > 1 else ""
        return Start(name, generator.kept_region(pixels, region), particles)
    if resample and image:
        pixels = generator.read_image(image)
        return Start(f"resample-{resample}_{_image_name(image, pixels)}", generator.kept_coarser(pixels, resample))
    return None


def _image_name(path: str, pixels: torch.Tensor) -> str:
    """Stem of the file name and eight hexadecimal digits of the SHA-256 of the resized image."""
    return f"{short_name(Path(path).stem)}-{hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:8]}"


def _region_name(region: str | torch.Tensor) -> str:
    if isinstance(region, str):
        return region.replace(",", "-")
    return f"mask-{hashlib.sha256(region.numpy().tobytes()).hexdigest()[:8]}"


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
    """Sample images 0 to num_images - 1 of a seed and write them as PNG files, with an image grid of the first ones.

    The batches are distributed over the processes. A batch whose files all exist is skipped.

    Args:
        generator: generator of a finished run.
        num_images: number of images.
        label: a class name or index, "none", or None; see `Generator.sample`.
        controls: temperature, top_k, top_p and guidance; see `Generator.sample`.
        seed: seed of the random numbers.
        batch_size: images times particles that a process samples at a time.
        state: state of the processes.
        start: codes of an image that every sample keeps; None: all codes are sampled.
        folder: folder to write to; None: samples/ of the run, which the models must come from.

    Raises:
        StoppedError: a signal was received or the launcher has ended; finished batches are saved.
        UserError: an argument is not valid for this run.
    """
    if folder is None:
        assert generator.run_dir is not None
        folder = generator.run_dir / "samples"
    with refusals_reach_all(state):
        at_least("num_images", num_images, 1)
        at_least("batch_size", batch_size, 1)
        at_least("seed", seed, 0)
        labels = generator.labels(label, range(num_images), seed, controls["guidance"])
        for name in generator.autoencoder.names:
            controls_of(name, **controls)
        directory = make_dir(folder)
        stem = _stem(label, controls, seed, batch_size, generator, start)
    paths = [directory / f"{stem}_{i:06d}{_class_suffix(labels, i, generator)}.png" for i in range(num_images)]

    particles = start.particles if start else 1
    at_a_time = max(1, batch_size // particles)
    batches = [range(i, min(i + at_a_time, num_images)) for i in range(0, num_images, at_a_time)]
    mine = [
        batch
        for batch in batches[state.process_index :: state.num_processes]
        if not all(paths[i].exists() for i in batch)
    ]
    codes = sum(prior.grid.height * prior.grid.width for prior in generator.priors.values())
    bar = tqdm(total=len(mine) * codes, desc="sampling", unit="code", disable=not state.is_main_process)
    survived: list[float] = []
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
                particles=particles,
                progress=bar.update,
                survival=lambda shares: survived.extend(shares.tolist()),
            )
            with writing(directory):
                for i, image in zip(batch, images, strict=True):
                    beside = paths[i].with_suffix(".partial.png")
                    save_image(image, beside)
                    os.replace(beside, paths[i])
            if reason := requests.reason():
                raise StoppedError(f"{directory}: stopped by {reason}; finished batches are saved")
    if survived and state.is_main_process:
        share = sum(survived) / len(survived)
        print(f"{share:.0%} of the {particles} first particles of an image have descendants (mean of {len(survived)})")

    grid = directory / f"grid_{stem}.png"
    with refusals_reach_all(state):
        if state.is_main_process:
            with writing(grid):
                save_samples_grid(paths, grid)
    return Written(paths, labels, grid)


def save_samples_grid(paths: list[Path], grid: Path) -> None:
    """Save the first GRID_IMAGES of the images at `paths` as one PNG."""
    shown = [read_sample(path) for path in paths[:GRID_IMAGES]]
    save_grid(torch.stack(shown), grid, columns=int(np.ceil(np.sqrt(len(shown)))))


def read_sample(path: Path) -> torch.Tensor:
    """Read a sampled image: uint8 (C, H, W)."""
    with Image.open(path) as image:
        pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def _stem(
    label: str | None, controls: dict[str, Any], seed: int, batch_size: int, generator: Generator, start: Start | None
) -> str:
    """File name prefix; it differs for other weights, controls, precisions and batch sizes, as these change samples."""
    neutral = {"temperature": 1.0, "top_k": None, "top_p": None, "guidance": 1.0}
    parts = (
        ([start.name] if start else [])
        + [f"seed{seed}"]
        + ([f"label-{short_name(str(label))}"] if label is not None else [])
    )
    parts += [f"{key}{value}" for key, value in controls.items() if value != neutral[key]]
    parts += [str(generator.dtype).removeprefix("torch."), f"batch{batch_size}"]
    return "_".join([*parts, generator.fingerprint()])


def _class_suffix(labels: torch.Tensor | None, i: int, generator: Generator) -> str:
    return "" if labels is None or labels[i] < 0 else "_" + short_name(generator.classes[labels[i]])


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """A name as part of a file name: itself, or if it has a slash or more than `longest` bytes, its start and a hash.

    The result has at most `longest` + 9 bytes.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if "/" not in name and len(encoded) <= longest:
        return name
    beginning = encoded[:longest].decode("utf-8", "ignore").replace("/", "-")
    return f"{beginning}-{hashlib.sha256(encoded).hexdigest()[:8]}"
