"""Writing of images and grids of images as PNG files."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid


def save_image(image: Tensor, path: Path) -> None:
    """Write a uint8 image (C, H, W) as a PNG file."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write uint8 images (B, C, H, W), row by row, as a grid in one PNG file."""
    save_image(make_grid(images.cpu(), nrow=columns, padding=2, pad_value=255).to(torch.uint8), path)
