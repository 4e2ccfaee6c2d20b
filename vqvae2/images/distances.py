"""How far images are from their reconstructions, pixel by pixel; both are uint8 (B, C, H, W).

There is one definition for metrics.jsonl and for evaluation.json: reconstructions are rounded to 8 bits first.
"""

import torch
from torch import Tensor

from vqvae2.images.convert import to_float
from vqvae2.run.precision import widest_float


def mse(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of values in [-1, 1]."""
    errors = (to_float(originals) - to_float(reconstructions)).square().mean(dim=(1, 2, 3))
    return errors.to(widest_float(errors.device))


def mse_0_1(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of values in [0, 1]: a quarter of `mse`."""
    return mse(originals, reconstructions) / 4


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels."""
    return decibels(mse(originals, reconstructions))


def decibels(squared_errors: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of mean squared errors of values in [-1, 1], whose range is 2."""
    return 10 * torch.log10(4 / squared_errors.clamp(min=1e-10))
