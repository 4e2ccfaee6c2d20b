"""Decoding of image files to uint8 tensors of the target size."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps
from torch import Tensor

from vqvae2.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
WHITE = (255, 255, 255)
LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)  # frame headers SOF3, SOF7, SOF11 and SOF15 of ITU-T T.81, table B.1
WIDEST = 4 / 3  # largest aspect ratio of a random crop, relative to that of the target size
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")

Colour = tuple[int, ...]  # (red, green, blue)


class Crop(NamedTuple):
    """A rectangular crop of an image, relative to the size of the image.

    Attributes:
        area: fraction of the image area, in (0, 1].
        ratio: aspect ratio (width / height) of the crop, divided by the aspect ratio of the target size.
        x: horizontal offset, from 0 (left edge) to 1 (right edge).
        y: vertical offset, from 0 (top edge) to 1 (bottom edge).
    """

    area: float
    ratio: float
    x: float
    y: float


def random_crop(area: tuple[float, float], uniforms: list[float]) -> Crop:
    """A crop that covers a fraction of the area from area[0] to area[1], from four uniform random numbers in [0, 1)."""
    share, ratio, x, y = uniforms
    return Crop(area[0] + share * (area[1] - area[0]), WIDEST ** (2 * ratio - 1), x, y)


def read_image(
    path: Path, height_width: tuple[int, int], channels: int, background: Colour = WHITE, crop: Crop | None = None
) -> Tensor:
    """Read an image file as uint8 (C, H, W): upright, scaled to cover `height_width` and center-cropped.

    With `crop`, that part of the image is scaled to `height_width` instead.

    Raises:
        UserError: the file is missing, cannot be decoded, or has so many pixels that Pillow treats it as a
            decompression bomb.
    """
    return decode_image(path, str(path), height_width, channels, background, crop)


def decode_image(
    file: Path | bytes,
    name: str,
    height_width: tuple[int, int],
    channels: int,
    background: Colour = WHITE,
    crop: Crop | None = None,
) -> Tensor:
    """Decode an image file, or its content, as `read_image` does; `name` stands for it in messages."""
    with decoding(name):
        try:
            with open_encoded(file) as image:
                draft(image, height_width, crop)
                return to_tensor(image, height_width, channels, background, crop)
        except OSError:  # some JPEGs can only be decoded at full size
            with open_encoded(file) as image:
                return to_tensor(image, height_width, channels, background, crop)


def open_encoded(file: Path | bytes) -> ImageFile.ImageFile:
    """Open an image file, or its content, with Pillow, whatever its extension.

    Raises:
        ValueError: the file is PostScript, which Pillow would run in Ghostscript.
    """
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    if image.format == "EPS":
        image.close()
        raise ValueError("PostScript is a program and is not run")
    return image


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, rotated by its EXIF tag.

    Raises:
        UserError: as for `read_image`.
    """
    with decoding(path), open_encoded(path) as image:
        width, height = ImageOps.exif_transpose(image).size
        return height, width


@contextmanager
def decoding(name: Path | str) -> Iterator[None]:
    """Context manager in which warnings about a file are ignored and errors become a UserError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF data, for example, would warn at each read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except Exception as error:  # decoders raise many types of exceptions on corrupt data
        raise UserError(f"{name}: cannot be read as an image ({error}): repair the file or remove it") from error


def draft(image: ImageFile.ImageFile, height_width: tuple[int, int], crop: Crop | None) -> None:
    """Let the JPEG decoder downscale while decoding, to no less than the target size in either orientation."""
    side = max(height_width) if crop is None else max(height_width) * max(crop.ratio, 1 / crop.ratio) / crop.area**0.5
    if image.format == "JPEG" and min(image.size) >= 2 * side and not is_lossless(image):
        scale = min(image.size) / side
        image.draft(None, (int(image.width / scale), int(image.height / scale)))


def is_lossless(image: ImageFile.ImageFile) -> bool:
    """Tell whether a JPEG is lossless (ITU-T T.81, annex H) by its frame header.

    A lossless JPEG cannot be downscaled while decoding: Pillow before version 13 then writes beyond its buffer.
    """
    file = image.fp
    assert file is not None  # the image has just been opened
    file.seek(2)  # after the start-of-image marker
    while head := file.read(1):
        if head != b"\xff":
            continue  # fill bytes between segments
        while (marker := file.read(1)) == b"\xff":
            pass
        if not marker or marker == b"\xda":  # start of scan: no frame header before it
            break
        if 0xC0 <= marker[0] <= 0xCF and marker[0] not in (0xC4, 0xC8, 0xCC):  # a frame header, not a table
            return marker[0] in LOSSLESS_FRAMES
        if not 0xD0 <= marker[0] <= 0xD9 and marker[0] not in (0x00, 0x01):  # these have no length
            file.seek(int.from_bytes(file.read(2), "big") - 2, io.SEEK_CUR)
    return True  # without a frame header it cannot be decoded in any case


def to_tensor(
    image: Image.Image,
    height_width: tuple[int, int],
    channels: int,
    background: Colour = WHITE,
    crop: Crop | None = None,
) -> Tensor:
    """Convert a Pillow image to uint8 (C, H, W): upright, in sRGB or grayscale, center-cropped to `height_width`.

    Transparent pixels are composited onto `background`. With `crop`, that part of the image is scaled to
    `height_width` instead.
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
    """Return the box (left, upper, right, lower) of a crop in pixels.

    Args:
        size: (width, height) of the image in pixels.
        aspect: width / height of the target size.
        crop: the crop, relative to the size of the image.
    """
    width, height = size
    area, ratio = crop.area * width * height, crop.ratio * aspect
    box_width, box_height = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, upper = crop.x * (width - box_width), crop.y * (height - box_height)
    return left, upper, left + box_width, upper + box_height


def to_eight_bits(image: Image.Image, background: Colour) -> Image.Image:
    """Convert an image of any mode to mode L, RGB or CMYK.

    16-bit values are scaled to 8 bits; transparent pixels are composited onto `background`.
    """
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
    """Convert an image from its ICC profile to sRGB; return it unchanged if the profile cannot be used."""
    try:
        return ImageCms.applyTransform(image, _transform(profile, image.mode)) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
