"""How well an autoencoder gives held-out images back, and how well it uses its codebooks."""

from pathlib import Path

import torch
from accelerate import Accelerator

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.autoencoder.usage import code_counts, usage_of
from vqvae2.config import AutoencoderConfig, level_grids
from vqvae2.images.convert import to_uint8
from vqvae2.images.distances import mse, psnr
from vqvae2.images.grids import save_grid
from vqvae2.images.loading import load_batches
from vqvae2.images.sources import ImageSet
from vqvae2.run.precision import widest_float
from vqvae2.training.order import in_order
from vqvae2.training.window import share_of, validation_window

GRID_IMAGES = 8
LOW_USAGE = 0.1  # of the codes that a level could use


def validate_autoencoder(
    autoencoder: Autoencoder,
    images: ImageSet,
    batch_size: int,
    workers: int,
    accelerator: Accelerator,
    grid: Path | None,
) -> dict[str, float]:
    """Metrics of the reconstructions of `validation_window`; every process takes its share of the images.

    Args:
        autoencoder: in eval mode, not wrapped.
        images: held out.
        batch_size: images of one process at a time.
        workers: that load images.
        accelerator: whose autocast is used.
        grid: where a picture of originals, reconstructions from the coarsest
            level alone and from all goes; None: nowhere.

    Returns:
        mse: mean squared error of pixels in [-1, 1], of reconstructions rounded to 8 bits, as evaluation.json has it.
        psnr: decibels, mean over images, of the same.
        LEVEL_usage, LEVEL_perplexity: over the window.
    """
    window = validation_window(len(images))
    mine = share_of(window, accelerator)
    levels = autoencoder.config.levels
    counts = [torch.zeros(level.codebook_size, dtype=torch.long, device=accelerator.device) for level in levels]
    sums = torch.zeros(3, dtype=widest_float(accelerator.device), device=accelerator.device)  # MSE, PSNR, images
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
        save_reconstruction_grid(autoencoder, images, window[:GRID_IMAGES], grid, accelerator)
    return metrics


def usage_warnings(
    metrics: dict[str, float], config: AutoencoderConfig, height_width: tuple[int, int], num_images: int
) -> list[str]:
    """A line for each level that uses under a tenth of its codes, of those that the window could use at all.

    Args:
        metrics: of `validate_autoencoder`.
        config: of the autoencoder.
        height_width: of the images, in pixels.
        num_images: held out.
    """
    lines = []
    images = len(validation_window(num_images))
    for grid in level_grids(config.levels, height_width):
        used = round(metrics[f"{grid.name}_usage"] * grid.codebook_size)
        if used < LOW_USAGE * min(grid.codebook_size, images * grid.height * grid.width):
            lines.append(
                f"warning: level {grid.name} uses {used} of its {grid.codebook_size} codes on the held-out images: "
                f"begin anew with a larger autoencoder.continuous_steps (now {config.continuous_steps}), a smaller "
                f"autoencoder.revival_window_images (now {config.revival_window_images}), a lower "
                f"stage1.learning_rate, or a smaller codebook_size"
            )
    return lines


def save_reconstruction_grid(
    autoencoder: Autoencoder, images: ImageSet, indices: list[int], path: Path, accelerator: Accelerator
) -> None:
    """Rows of originals, of reconstructions from the coarsest of several levels alone, and from all levels."""
    originals = torch.stack([images.load(i) for i in indices]).to(accelerator.device)
    with accelerator.autocast():
        codes = autoencoder.encode(originals)
        rows = [originals, autoencoder.decode(codes)]
        if len(codes) > 1:
            coarsest = autoencoder.names[0]
            rows.insert(1, autoencoder.decode({coarsest: codes[coarsest]}))
    save_grid(torch.cat(rows), path, columns=len(indices))
