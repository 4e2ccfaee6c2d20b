"""From an image file, as people have them, to a uint8 tensor of the wanted size."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from vqvae2.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


def read_image(path: Path, height_width: tuple[int, int], channels: int) -> Tensor:
    """Read, turn upright, scale to cover `height_width` and crop the centre: uint8 (C, H, W).

    Raises:
        UserError: the file is missing, too large to be an honest picture, or cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                draft(image, height_width)
                return to_tensor(image, height_width, channels)
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError, Warning) as error:
        raise UserError(
            f"{path}: cannot be read as an image ({error}): repair it or take it out of the folder"
        ) from error


def draft(image: Image.Image, height_width: tuple[int, int]) -> None:
    """Let the JPEG decoder scale down by itself, to no less than the side needed after a possible turn."""
    side = max(height_width)
    if image.format == "JPEG" and min(image.size) >= 2 * side:
        scale = min(image.size) / side
        image.draft(None, (int(image.width / scale), int(image.height / scale)))


def to_tensor(image: Image.Image, height_width: tuple[int, int], channels: int) -> Tensor:
    """Any Pillow image -> uint8 (C, H, W): upright, in sRGB or grayscale, centre-cropped to the wanted shape."""
    height, width = height_width
    image = to_rgb(ImageOps.exif_transpose(image))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    pixels = np.array(image, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_rgb(image: Image.Image) -> Image.Image:
    """Mode L or RGB of any mode: 16 bits scaled, profiles applied, transparency laid over the background."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    if image.mode == "CMYK":
        return apply_profile(image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def apply_profile(image: Image.Image) -> Image.Image:
    """The colours of an embedded ICC profile in sRGB; the image itself where it has none that can be used."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):
        return image
