"""From an image file, as people have them, to a uint8 tensor of the wanted size."""

import io
import warnings
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from vqvae2.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
WHITE = (255, 255, 255)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")

Colour = tuple[int, int, int]


class Crop(NamedTuple):
    """A part of an image.

    Attributes:
        area: its share of the image.
        ratio: by how much wider it is than the wanted shape.
        x: where it lies from left (0) to right (1).
        y: likewise from top to bottom.
    """

    area: float
    ratio: float
    x: float
    y: float


def read_image(
    path: Path, height_width: tuple[int, int], channels: int, background: Colour = WHITE, crop: Crop | None = None
) -> Tensor:
    """Read, turn upright, scale to cover `height_width` and crop the centre: uint8 (C, H, W).

    With `crop` that part is scaled instead.

    Raises:
        UserError: the file is missing, too large to be an honest picture, or cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data and the like, each time a file is read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(path) as image:
                    draft(image, height_width, crop)
                    return to_tensor(image, height_width, channels, background, crop)
            except OSError:  # some JPEGs can be decoded at their full size alone
                with Image.open(path) as image:
                    return to_tensor(image, height_width, channels, background, crop)
    except Exception as error:  # decoders raise nearly anything on spoilt bytes
        raise UserError(
            f"{path}: cannot be read as an image ({error}): repair it or take it out of the folder"
        ) from error


def draft(image: Image.Image, height_width: tuple[int, int], crop: Crop | None) -> None:
    """Let the JPEG decoder scale down by itself, to no less than the side needed after a possible turn."""
    side = max(height_width) if crop is None else max(height_width) * max(crop.ratio, 1 / crop.ratio) / crop.area**0.5
    if image.format == "JPEG" and min(image.size) >= 2 * side:
        scale = min(image.size) / side
        image.draft(None, (int(image.width / scale), int(image.height / scale)))


def to_tensor(
    image: Image.Image,
    height_width: tuple[int, int],
    channels: int,
    background: Colour = WHITE,
    crop: Crop | None = None,
) -> Tensor:
    """Any Pillow image -> uint8 (C, H, W): upright, in sRGB or grayscale, centre-cropped to the wanted shape.

    What is transparent is laid over `background`. With `crop` that part is scaled to the wanted shape.
    """
    height, width = height_width
    profile = image.info.get("icc_profile")
    image = to_eight_bits(ImageOps.exif_transpose(image), background)
    if crop is not None:
        box = crop_box(image.size, width / height, crop)
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    elif image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    if profile:
        image = to_srgb(image, profile)
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.array(image, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def crop_box(size: tuple[int, int], aspect: float, crop: Crop) -> tuple[float, float, float, float]:
    """(left, upper, right, lower) of a part of an image of `size` (width, height); `aspect`: of the wanted shape."""
    width, height = size
    area, ratio = crop.area * width * height, crop.ratio * aspect
    box_width, box_height = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, upper = crop.x * (width - box_width), crop.y * (height - box_height)
    return left, upper, left + box_width, upper + box_height


def to_eight_bits(image: Image.Image, background: Colour) -> Image.Image:
    """Mode L, RGB or CMYK of any mode: 16 bits scaled, transparency laid over the background."""
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The colours of an ICC profile in sRGB; the image itself where the profile cannot be used."""
    try:
        return ImageCms.applyTransform(image, _transform(profile, image.mode)) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
