"""Validation of an autoencoder on held-out images: reconstruction error and codebook usage."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.autoencoder.usage import code_counts, usage_of
from vqvae2.config import AutoencoderConfig, level_grids
from vqvae2.errors import UserError
from vqvae2.images.convert import to_uint8
from vqvae2.images.distances import mse, psnr
from vqvae2.images.grids import save_grid
from vqvae2.images.image_sets import ImageSet
from vqvae2.images.loading import load_batches
from vqvae2.run.precision import widest_float
from vqvae2.training.order import in_order
from vqvae2.training.window import share_of, validation_window

GRID_IMAGES = 8
LOW_USAGE = 0.1  # share of the codes that a level can use on the validation images


def validate_autoencoder(
    autoencoder: Autoencoder,
    images: ImageSet,
    batch_size: int,
    workers: int,
    accelerator: Accelerator,
    grid: Path | None,
) -> dict[str, float]:
    """Compute reconstruction and codebook metrics on the `validation_window`, split over all processes.

    Args:
        autoencoder: the model in eval mode, not wrapped by the accelerator.
        images: held-out images.
        batch_size: images per process at a time.
        workers: processes that load images.
        accelerator: provides autocast and reduction over processes.
        grid: file to save a picture to, with originals, reconstructions from the coarsest level alone, and
            reconstructions from all levels; None: no picture.

    Returns:
        A dictionary of metrics:
            mse: mean squared error of pixels in [-1, 1], of reconstructions rounded to 8 bits, as in evaluation.json.
            psnr: peak signal-to-noise ratio of the same reconstructions in decibels, mean over images.
            LEVEL_usage, LEVEL_perplexity: codebook usage of each level over the window.
    """
    window = validation_window(len(images))
    mine = share_of(window, accelerator)
    levels = autoencoder.config.levels
    counts = [torch.zeros(level.codebook_size, dtype=torch.long, device=accelerator.device) for level in levels]
    sums = torch.zeros(3, dtype=widest_float(accelerator.device), device=accelerator.device)  # MSE, PSNR, image count
    for batch in load_batches(
        images, in_order(mine, batch_size), workers=0 if len(mine) <= batch_size else min(workers, 2)
    ):
        originals = batch.images.to(accelerator.device, non_blocking=True)
        with accelerator.autocast():
            reconstruction = autoencoder(originals)
        pairs = originals, to_uint8(reconstruction.images)
        sums += torch.stack([mse(*pairs).sum(), psnr(*pairs).sum(), sums.new_tensor(len(originals))])
        for count, result in zip(counts, reconstruction.quantised, strict=True):
            count += code_counts(result.codes, len(count))
    squared, peak_ratios, seen = accelerator.reduce(sums).tolist()
    metrics = {"mse": squared / seen, "psnr": peak_ratios / seen}
    for level, count in zip(levels, counts, strict=True):
        usage = usage_of(accelerator.reduce(count))
        metrics |= {f"{level.name}_usage": usage.usage, f"{level.name}_perplexity": usage.perplexity}
    if grid and accelerator.is_main_process:
        try:
            save_reconstruction_grid(autoencoder, images, window[:GRID_IMAGES], grid, accelerator)
        except (OSError, UserError) as error:  # a picture that cannot be made must not stop training
            tqdm.write(f"warning: the picture {grid} could not be written: {error}", file=sys.stderr)
    return metrics


def usage_warnings(
    metrics: dict[str, float], config: AutoencoderConfig, height_width: tuple[int, int], num_images: int
) -> list[str]:
    """A warning for each level that uses less than a tenth of the codes that it can use on the validation images.

    Args:
        metrics: result of `validate_autoencoder`.
        config: configuration of the autoencoder.
        height_width: size of the images in pixels.
        num_images: number of held-out images.
    """
    lines = []
    images = len(validation_window(num_images))
    for grid in level_grids(config.levels, height_width):
        used = round(metrics[f"{grid.name}_usage"] * grid.codebook_size)
        if used < LOW_USAGE * min(grid.codebook_size, images * grid.height * grid.width):
            lines.append(
                f"warning: level {grid.name} uses {used} of its {grid.codebook_size} codes on the held-out images: "
                f"start a new run with a larger autoencoder.continuous_steps (now {config.continuous_steps}), "
                f"a smaller autoencoder.revival_window_images (now {config.revival_window_images}), a lower "
                f"stage1.learning_rate, or a smaller codebook_size"
            )
    return lines


def save_reconstruction_grid(
    autoencoder: Autoencoder, images: ImageSet, indices: list[int], path: Path, accelerator: Accelerator
) -> None:
    """Save a picture with a row of originals and a row of reconstructions from all levels.

    With several levels, a row between them shows reconstructions from the coarsest level alone.
    """
    batch = next(load_batches(images, in_order(indices, len(indices)), workers=0))  # replaces unreadable images
    originals = batch.images.to(accelerator.device)
    with accelerator.autocast():
        codes = autoencoder.encode(originals)
        rows = [originals, autoencoder.decode(codes)]
        if len(codes) > 1:
            coarsest = autoencoder.names[0]
            rows.insert(1, autoencoder.decode({coarsest: codes[coarsest]}))
    save_grid(torch.cat(rows), path, columns=len(indices))
