"""Pixel-wise distances (B,) between images and their reconstructions, both uint8 (B, C, H, W).

metrics.jsonl and evaluation.json use the same definition: reconstructions are rounded to 8 bits first.
"""

import torch
from torch import Tensor

from vqvae2.images.convert import to_float
from vqvae2.run.precision import widest_float


def mse(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of pixel values in [-1, 1]."""
    errors = (to_float(originals) - to_float(reconstructions)).square().mean(dim=(1, 2, 3))
    return errors.to(widest_float(errors.device))


def mse_0_1(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of pixel values in [0, 1], which is a quarter of `mse`."""
    return mse(originals, reconstructions) / 4


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels."""
    return decibels(mse(originals, reconstructions))


def decibels(squared_errors: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, from mean squared errors of values in [-1, 1] (a range of 2)."""
    return 10 * torch.log10(4 / squared_errors.clamp(min=1e-10))
