"""Pictures of the page: reading what a visitor uploads or paints, and writing what is shown."""

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.images.decode import WHITE, Colour, decode_image, read_image
from vqvae2.images.grids import save_image

SHOWN_SIDE = 256  # pixels; smaller images are enlarged by a whole factor
BLACK = (0, 0, 0)
BRUSH_COLOR, BRUSH_OPACITY = "#ff2d8f", 0.7
PAINTED_FROM = 40  # brightness of painted pixels on black, from 0 to 255; that of the brush is 83
REGIONS = ["Painted area", "Top half", "Bottom half", "Left half", "Right half", "Center"]


def enlargement(height: int, width: int) -> int:
    """The whole factor by which images of this size are enlarged."""
    return -(-SHOWN_SIDE // max(height, width)) if max(height, width) < SHOWN_SIDE else 1


class ShownFiles:
    """PNG files of the images that the page shows.

    A file is named by its content and written once. Gradio's own would be written again for each event that shows the
    image, also while a browser reads it.
    """

    def __init__(self, folder: Path):
        """Write to `folder`, which Gradio must be allowed to serve."""
        self.folder = folder

    def path(self, image: Tensor) -> str:
        """Path of the file of a uint8 image (C, H, W), enlarged without smoothing."""
        image = image.contiguous()
        name = hashlib.sha256(repr(image.shape).encode() + image.numpy().tobytes()).hexdigest()
        path = self.folder / f"{name}.png"
        try:
            os.utime(path)  # so that it is not removed as an old one
        except FileNotFoundError:
            factor = enlargement(image.shape[1], image.shape[2])
            with tempfile.TemporaryDirectory(dir=self.folder) as beside:
                save_image(image.repeat_interleave(factor, 1).repeat_interleave(factor, 2), Path(beside) / path.name)
                os.replace(Path(beside) / path.name, path)
        return str(path)


def read_upload(path: str, height_width: tuple[int, int], channels: int, background: Colour = WHITE) -> Tensor:
    """Read an uploaded image in size and channels of the model, as a training image is read: uint8 (1, C, H, W).

    Raises:
        UserError: the file cannot be decoded or is too large; the message has its name without the folder.
    """
    try:
        return read_image(Path(path), height_width, channels, background)[None]
    except UserError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from error


def painted(layers: list[bytes], height_width: tuple[int, int]) -> Tensor:
    """Pixels that are painted in any of the layers, which are image files with transparency: bool (H, W)."""
    found = torch.zeros(height_width, dtype=torch.bool)
    for layer in layers:
        found |= decode_image(layer, "painted area", height_width, 1, BLACK)[0] >= PAINTED_FROM
    return found


def kept_outside(region: str, layers: list[bytes], height_width: tuple[int, int]) -> Tensor:
    """Pixels of a picture that are kept, bool (H, W).

    Args:
        region: what is sampled, one of REGIONS.
        layers: the painted layers, for the region "Painted area".
        height_width: size of the picture in pixels.

    Raises:
        UserError: the region is not known, or all or no pixels are kept.
    """
    height, width = height_width
    if region not in REGIONS:
        raise UserError(f"area: {region!r} is not valid: use one of {', '.join(REGIONS)}")
    sampled = torch.zeros(height_width, dtype=torch.bool)
    if region == "Painted area":
        sampled = painted(layers, height_width)
    elif region == "Center":
        sampled[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    else:
        rows = {"Top half": slice(height // 2), "Bottom half": slice(height // 2, None)}.get(region, slice(None))
        columns = {"Left half": slice(width // 2), "Right half": slice(width // 2, None)}.get(region, slice(None))
        sampled[rows, columns] = True
    if not sampled.any():
        raise UserError("Nothing is painted: paint over the area to sample, or choose another area.")
    if sampled.all():
        raise UserError("Everything is painted: erase a part, so that some of the picture is kept.")
    return ~sampled
