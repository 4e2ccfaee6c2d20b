"""The codes of a picture as maps of colors, and what single code vectors decode to."""

from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor

from vqvae2.demo.pictures import enlargement
from vqvae2.errors import UserError
from vqvae2.generation.generator import Generator

DARKEST, BRIGHTEST = 40, 235  # of a color channel, so that lines in black and white are seen on every color
TAILS = 0.05  # share of the codes at either end of a color channel's range


class CodeView(NamedTuple):
    """One code of a picture.

    Attributes:
        code: its index in the codebook.
        positions: number of positions of the level that have this code.
        here: the code at its position and no other, decoded, uint8 (C, H, W).
        everywhere: the code at all positions of the level and no other level, decoded, uint8 (C, H, W).
        map: the map of the level, with the positions of this code marked, uint8 (3, H', W').
    """

    code: int
    positions: int
    here: Tensor
    everywhere: Tensor
    map: Tensor


def code_colors(codebook: Tensor) -> Tensor:
    """A color for each code vector (K, D), uint8 (K, 3): red, green and blue are its first three principal components.

    Similar vectors have similar colors.
    """
    centered = codebook.double().cpu() - codebook.double().cpu().mean(0)
    components = torch.linalg.svd(centered, full_matrices=False).Vh[:3]  # (at most 3, D)
    # a singular vector's sign is arbitrary: let its largest entry be positive
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    projected = centered @ (components * largest.sign()).T  # (K, at most 3)
    low, high = projected.quantile(TAILS, 0), projected.quantile(1 - TAILS, 0)
    shares = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colors = torch.full((len(codebook), 3), 0.5, dtype=torch.float64)
    colors[:, : shares.shape[1]] = shares
    return (DARKEST + (BRIGHTEST - DARKEST) * colors).round().to(torch.uint8)


def code_map(codes: Tensor, colors: Tensor, cell: int, marked: int | None = None) -> Tensor:
    """A map of codes (H, W) as an image, uint8 (3, H * cell, W * cell), in which every code is a square of its color.

    Args:
        codes: codes (H, W).
        colors: color of each code, uint8 (K, 3).
        cell: side of a square in pixels.
        marked: a code whose squares get a frame; the others are faded.
    """
    image = colors[codes]  # (H, W, 3)
    if marked is not None:
        other = (codes != marked)[..., None]
        image = torch.where(other, (image.float() * 0.35 + 128 * 0.65).to(torch.uint8), image)
    return repeat(image, "h w c -> c (h y) (w x)", y=cell, x=cell).contiguous()


def cell_of(generator: Generator, level: str) -> int:
    """Side in pixels of a code of a level in its map, which is as large as the enlarged picture."""
    height, width = generator.height_width
    grid = generator.priors[level].grid
    return enlargement(height, width) * height // grid.height


def code_maps(generator: Generator, codes: dict[str, Tensor]) -> dict[str, Tensor]:
    """The map of each level of a picture's codes (1, H, W), uint8 (3, H', W') by name."""
    codebooks = generator.autoencoder.codebooks()
    return {name: code_map(x[0], code_colors(codebooks[name]), cell_of(generator, name)) for name, x in codes.items()}


def view_code(generator: Generator, codes: dict[str, Tensor], level: str, row: int, column: int) -> CodeView:
    """What a code of a picture is.

    Args:
        generator: the trained models.
        codes: codes (1, H, W) of the picture by level.
        level: name of a level.
        row: row of the code, from 0.
        column: column of the code, from 0.

    Raises:
        UserError: there is no such code.
    """
    own = codes[level]
    _, height, width = own.shape
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(
            f"row {row + 1}, column {column + 1}: level {level} has no such code: "
            f"use rows 1 to {height} and columns 1 to {width}"
        )
    code = int(own[0, row, column])
    colors = code_colors(generator.autoencoder.codebooks()[level])
    here = {name: torch.full_like(x, -1) for name, x in codes.items()}
    everywhere = {**here, level: torch.full_like(own, code)}
    here[level][0, row, column] = code
    return CodeView(
        code,
        int((own == code).sum()),
        generator.decode(here)[0],
        generator.decode(everywhere)[0],
        code_map(own[0], colors, cell_of(generator, level), code),
    )
