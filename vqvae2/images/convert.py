"""Conversion between uint8 images, as in files and public functions, and float images, as in the networks."""

import torch
from torch import Tensor


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 images (..., C, H, W) in [0, 255] to `dtype` in [-1, 1]."""
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Convert float images (..., C, H, W) in [-1, 1] to uint8 in [0, 255]; values outside [-1, 1] are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
