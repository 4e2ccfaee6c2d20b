"""Selection of the codes to keep while the others are sampled, for completion and resampling."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from vqvae2.config import LevelGrid
from vqvae2.errors import UserError

HALVES = ("top", "bottom", "left", "right")


class Kept(NamedTuple):
    """Codes of one level, some of which are kept.

    Attributes:
        codes: (B, H, W), or (1, H, W) for the same codes in all images.
        mask: bool (H, W), true at the positions to keep.
    """

    codes: Tensor
    mask: Tensor


def parse_region(text: str, height_width: tuple[int, int]) -> tuple[int, int, int, int]:
    """Parse a region of the image: the name of a half, or a box LEFT,UPPER,RIGHT,LOWER in pixels as in Pillow's crop.

    Returns:
        The box (left, upper, right, lower) in pixels.

    Raises:
        UserError: the text is neither, or the box is empty or not inside the image.
    """
    height, width = height_width
    halves = {
        "top": (0, 0, width, height // 2),
        "bottom": (0, height // 2, width, height),
        "left": (0, 0, width // 2, height),
        "right": (width // 2, 0, width, height),
    }
    if text in halves:
        return halves[text]
    try:
        left, upper, right, lower = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"keep: {text!r} is not valid: use {', '.join(HALVES)}, or a box LEFT,UPPER,RIGHT,LOWER in pixels"
        ) from None
    if not (0 <= left < right <= width and 0 <= upper < lower <= height):
        raise UserError(
            f"keep: {text!r} is not valid: use a non-empty box inside the image, "
            f"which is {width} pixels wide and {height} pixels high"
        )
    return left, upper, right, lower


def region_mask(keep: str | Tensor, height_width: tuple[int, int]) -> Tensor:
    """Pixels to keep, bool (H, W).

    Args:
        keep: a region as for `parse_region`, or a mask, bool (H, W), true where the image is kept.
        height_width: size of the image in pixels.

    Raises:
        UserError: the region is not valid, or the mask has another size or dtype, or keeps all or no pixels.
    """
    if isinstance(keep, str):
        left, upper, right, lower = parse_region(keep, height_width)
        mask = torch.zeros(height_width, dtype=torch.bool)
        mask[upper:lower, left:right] = True
        return mask
    if keep.dtype != torch.bool or tuple(keep.shape) != height_width:
        raise UserError(f"keep: {tuple(keep.shape)} {keep.dtype} is not valid: use a bool mask of shape {height_width}")
    if keep.all() or not keep.any():
        which = "all pixels" if keep.all() else "no pixel"
        raise UserError(f"keep: the mask keeps {which}: use white for what to keep and black for what to sample")
    return keep.cpu()


def keep_region(
    codes: dict[str, Tensor], grids: list[LevelGrid], mask: Tensor, height_width: tuple[int, int]
) -> dict[str, Kept]:
    """Keep the codes whose pixels are all kept.

    Args:
        codes: codes (B, H, W) of each level by name.
        grids: grid of each level, coarsest first.
        mask: pixels to keep, bool (H, W) of the image.
        height_width: size of the images in pixels.

    Raises:
        UserError: no code of the coarsest level is kept.
    """
    kept = {}
    for grid in grids:
        stride = height_width[0] // grid.height
        blocks = rearrange(mask, "(h s) (w t) -> h w (s t)", s=stride, t=stride)
        kept[grid.name] = Kept(codes[grid.name], blocks.all(dim=-1))
    coarsest = grids[0]
    if not kept[coarsest.name].mask.any():
        stride = height_width[0] // coarsest.height
        raise UserError(
            f"keep: the region is too small: it must contain a whole code of level {coarsest.name}, "
            f"which covers {stride}x{stride} pixels"
        )
    return kept


def keep_coarser(codes: dict[str, Tensor], level: str) -> dict[str, Kept]:
    """Keep every code of the levels that are coarser than `level`.

    Raises:
        UserError: `level` is not a level of the codes.
    """
    names = list(codes)
    if level not in names:
        raise UserError(f"resample: {level!r} is not valid: use one of the levels {', '.join(names)}")
    return {
        name: Kept(codes[name], torch.ones_like(codes[name][0], dtype=torch.bool))
        for name in names[: names.index(level)]
    }
