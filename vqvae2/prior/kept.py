"""Which codes of given images stay as they are while the rest is drawn: completion and resampling."""

from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2.config import LevelGrid
from vqvae2.errors import UserError

HALVES = ("top", "bottom", "left", "right")


class Kept(NamedTuple):
    """Codes of one level, (B, H, W) or (1, H, W) for all images alike, and where they are kept, bool (H, W)."""

    codes: Tensor
    mask: Tensor


def parse_region(text: str, height_width: tuple[int, int]) -> tuple[int, int, int, int]:
    """A half by its name, or LEFT,UPPER,RIGHT,LOWER in pixels as Pillow crops -> that box.

    Raises:
        UserError: neither, or a box that is empty or not inside the image.
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
            f"keep: {text!r} is not valid: {', '.join(HALVES)}, or a box LEFT,UPPER,RIGHT,LOWER in pixels"
        ) from None
    if not (0 <= left < right <= width and 0 <= upper < lower <= height):
        raise UserError(f"keep: {text!r} is not valid: a box inside the image, which is {width} wide and {height} high")
    return left, upper, right, lower


def keep_region(
    codes: dict[str, Tensor], grids: list[LevelGrid], box: tuple[int, int, int, int], height_width: tuple[int, int]
) -> dict[str, Kept]:
    """Keep the codes whose pixels all lie in the box (left, upper, right, lower).

    Raises:
        UserError: the box holds no code of the coarsest level.
    """
    left, upper, right, lower = box
    kept = {}
    for grid in grids:
        stride = height_width[0] // grid.height
        rows, columns = torch.arange(grid.height) * stride, torch.arange(grid.width) * stride
        inside_rows = (rows >= upper) & (rows + stride <= lower)
        inside_columns = (columns >= left) & (columns + stride <= right)
        kept[grid.name] = Kept(codes[grid.name], inside_rows[:, None] & inside_columns)
    coarsest = grids[0]
    if not kept[coarsest.name].mask.any():
        stride = height_width[0] // coarsest.height
        raise UserError(
            f"keep: {box} holds no whole {coarsest.name} code, each of which covers {stride}x{stride} pixels"
        )
    return kept


def keep_coarser(codes: dict[str, Tensor], level: str) -> dict[str, Kept]:
    """Keep every code of the levels that are coarser than `level`.

    Raises:
        UserError: there is no such level.
    """
    names = list(codes)
    if level not in names:
        raise UserError(f"resample: no level {level!r}: choose one of {', '.join(names)}")
    return {
        name: Kept(codes[name], torch.ones_like(codes[name][0], dtype=torch.bool))
        for name in names[: names.index(level)]
    }
