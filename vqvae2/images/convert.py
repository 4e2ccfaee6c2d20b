"""The one pair of functions between images as users see them and images as the networks see them."""

import torch
from torch import Tensor


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (..., C, H, W) in 0..255 -> `dtype` in [-1, 1]."""
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float (..., C, H, W) in [-1, 1] -> uint8 in 0..255; values outside are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
