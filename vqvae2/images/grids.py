"""Writing of images and grids of images as PNG files."""

from pathlib import Path

import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

LINE = 2  # pixels between images
WHITE = 255


def save_image(image: Tensor, path: Path) -> None:
    """Write a uint8 image (C, H, W) as a PNG file."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write uint8 images (B, C, H, W), row by row, as a grid with white lines in one PNG file."""
    columns = min(columns, len(images))
    missing = -len(images) % columns
    tiles = F.pad(images.cpu(), (0, LINE, 0, LINE), value=WHITE)  # (B, C, H + 2, W + 2)
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, missing), value=WHITE)
    grid = rearrange(tiles, "(rows columns) c h w -> c (rows h) (columns w)", columns=columns)
    save_image(F.pad(grid, (LINE, 0, LINE, 0), value=WHITE), path)
