"""Masks of the part of an image that is kept, and filling of the rest."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.images.decode import EXTENSIONS, read_image, upright_size

KEPT_FROM = 250  # pixel values from here to 255 are white; smoothed edges of a mask belong to the hole


def is_mask_file(keep: str) -> bool:
    """Whether the text names an image file."""
    return Path(keep).suffix.lower() in EXTENSIONS


def read_mask(path: Path, picture: Path, height_width: tuple[int, int]) -> Tensor:
    """Read a mask of a picture as bool (H, W), true where the mask is white.

    Args:
        path: file of the mask.
        picture: file of the picture. A mask of its size is scaled and cropped as the picture is.
        height_width: size of the images of the run; the mask may have this size instead.

    Raises:
        UserError: a file cannot be read, or the mask has another size.
    """
    pixels = read_image(path, height_width, channels=1, background=(0, 0, 0))
    size, allowed = upright_size(path), {upright_size(picture), height_width}
    if size not in allowed:
        sizes = " or ".join(f"{width}x{height}" for height, width in sorted(allowed))
        raise UserError(f"{path}: {size[1]}x{size[0]} is not valid: use a mask of {sizes} pixels")
    return pixels[0] >= KEPT_FROM


def fill(images: Tensor, known: Tensor) -> Tensor:
    """Fill the unknown pixels of uint8 images (B, C, H, W) smoothly from those that are known, bool (H, W).

    A pyramid of averages of known pixels is built and unknown pixels are taken from the coarser levels ("pull-push",
    Gortler et al. 1996, section 3.4).
    """
    if known.all():
        return images
    known = known.to(images.device)
    filled = _fill(images.float(), known.float()[None, None])
    return torch.where(known, images, filled.round().clamp(0, 255).to(torch.uint8))


def _fill(images: Tensor, known: Tensor) -> Tensor:
    """Fill float images (B, C, H, W) where `known` (1, 1, H, W) is 0."""
    if known.min() > 0 or known.shape[2:] == (1, 1):
        return images
    weights = F.avg_pool2d(known, 2, ceil_mode=True)  # (1, 1, ceil(H / 2), ceil(W / 2))
    means = F.avg_pool2d(images * known, 2, ceil_mode=True) / weights.clamp(min=1e-9)
    coarse = _fill(means, (weights > 0).float())
    wide = F.interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, images, wide)
