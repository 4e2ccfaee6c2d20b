"""Masks of the part of a picture that is kept, and filling of the rest."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.errors import UserError
from vqvae2.images.masks import fill, read_mask


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Save uint8 pixels as an image file."""
    Image.fromarray(pixels).save(path, **options)
    return path


def test_mask_is_cropped_as_its_picture_is(tmp_path: Path) -> None:
    """A mask of the picture's size is scaled and center-cropped like the picture; one of the run's size is not."""
    pixels = np.zeros((40, 120), dtype=np.uint8)
    pixels[:, 60:] = 255  # the right half; the middle 80 columns remain after the crop to 2 : 1
    picture = save(tmp_path / "picture.png", np.stack([pixels] * 3, axis=2))
    expected = torch.zeros(16, 32, dtype=torch.bool)
    expected[:, 16:] = True
    mask = read_mask(save(tmp_path / "mask.png", pixels), picture, (16, 32))
    assert torch.equal(mask[:, :15], expected[:, :15]) and torch.equal(mask[:, 17:], expected[:, 17:])
    own = read_mask(save(tmp_path / "own.png", expected.numpy().astype(np.uint8) * 255), picture, (16, 32))
    assert torch.equal(own, expected)


def test_gray_belongs_to_the_hole(tmp_path: Path) -> None:
    """Only white pixels are kept, and transparent ones are not."""
    pixels = np.array([[255, 252, 200, 128, 0, 255]], dtype=np.uint8).repeat(2, axis=0)
    alpha = np.full_like(pixels, 255)
    alpha[:, -1] = 0
    path = save(tmp_path / "mask.png", np.stack([pixels, alpha], axis=2))
    picture = save(tmp_path / "picture.png", np.zeros((2, 6, 3), dtype=np.uint8))
    assert read_mask(path, picture, (2, 6)).tolist() == [[True, True, False, False, False, False]] * 2


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    """The message names the file, its size and the sizes that are valid."""
    picture = save(tmp_path / "picture.png", np.zeros((40, 50, 3), dtype=np.uint8))
    path = save(tmp_path / "mask.png", np.zeros((50, 40), dtype=np.uint8))
    with pytest.raises(UserError, match=r"mask.png: 40x50 is not valid.*32x16 or 50x40"):
        read_mask(path, picture, (16, 32))
    with pytest.raises(UserError, match=r"missing.png"):
        read_mask(tmp_path / "missing.png", picture, (16, 32))


def test_hole_is_filled_from_its_surroundings_alone() -> None:
    """Known pixels stay; the fill does not depend on the hole and lies between the values around it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, 140, (2, 3, 17, 33), dtype=torch.uint8, generator=generator)
    known = torch.ones(17, 33, dtype=torch.bool)
    known[4:13, 5:30] = False
    known[16, 32] = False
    other = torch.where(known, images, 255)
    filled = fill(images, known)
    assert torch.equal(filled, fill(other, known))
    assert torch.equal(filled[:, :, known], images[:, :, known])
    assert filled[:, :, ~known].min() >= 100 and filled[:, :, ~known].max() <= 140
    assert torch.equal(fill(images, torch.ones_like(known)), images)


def test_fill_follows_a_gradient() -> None:
    """The fill of a hole in a horizontal ramp increases from left to right, as the ramp does."""
    ramp = (torch.arange(64) * 4).to(torch.uint8).expand(1, 1, 32, 64)
    known = torch.ones(32, 64, dtype=torch.bool)
    known[8:24, 16:48] = False
    columns = fill(ramp, known)[0, 0, 8:24, 16:48].float().mean(0)
    assert columns[0] < 100 and columns[-1] > 150 and (columns.diff() >= -1).all()
