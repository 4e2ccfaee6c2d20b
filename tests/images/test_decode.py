"""Decoding of image files: modes, bit depths, color profiles, orientation, cropping and damaged files."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from tests.by_hand.fuzz_images import fuzz
from vqvae2.errors import UserError
from vqvae2.images.decode import draft, open_encoded, read_image

HEIGHT, WIDTH = 6, 8
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = PICTURE[..., 0]


def read(path: Path, height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> np.ndarray:
    """Read a file as an int array (height, width, channels)."""
    return read_image(path, (height, width), channels).permute(1, 2, 0).numpy().astype(int)


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma of an RGB array (..., 3)."""
    return rgb @ np.array([0.299, 0.587, 0.114])


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend colors (H, W, 3) with opacity (H, W) over white."""
    return 255 + (colour.astype(float) - 255) * (alpha[..., None] / 255)


def test_rgb(tmp_path: Path):
    """A lossless RGB file of the requested size is read unchanged."""
    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png"), PICTURE)


def test_gray(tmp_path: Path):
    """Mode L gives three equal channels, or one channel."""
    Image.fromarray(GRAY).save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png"), np.stack([GRAY] * 3, -1))
    assert np.array_equal(read(tmp_path / "x.png", channels=1)[..., 0], GRAY)


def test_black_and_white(tmp_path: Path):
    """Mode 1 gives the values 0 and 255."""
    Image.fromarray(GRAY > 127).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode == "1"
    assert np.array_equal(read(tmp_path / "x.png", channels=1)[..., 0], np.where(GRAY > 127, 255, 0))


def test_palette(tmp_path: Path):
    """A palette image has the colors of its palette."""
    paletted = Image.fromarray(GRAY // 64, mode="P")
    colours = np.array([[250, 10, 20], [0, 200, 30], [5, 6, 240], [9, 90, 99]], dtype=np.uint8)
    paletted.putpalette(colours.tobytes())
    paletted.save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png"), colours[GRAY // 64])


def test_palette_with_transparency(tmp_path: Path):
    """A transparent palette entry becomes white."""
    paletted = Image.fromarray(GRAY // 128, mode="P")
    paletted.putpalette([200, 0, 0, 0, 0, 200])
    paletted.save(tmp_path / "x.png", transparency=0)
    expected = np.where((GRAY // 128)[..., None] == 0, [255, 255, 255], [0, 0, 200])
    assert np.array_equal(read(tmp_path / "x.png"), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_lies_over_white(tmp_path: Path, channels: int):
    """RGBA is blended with white, also where fully transparent pixels are black."""
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    colour = np.where(alpha[..., None] == 0, 0, PICTURE).astype(np.uint8)
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "x.png")
    expected = over_white(colour, alpha)
    expected = luma(expected)[..., None] if channels == 1 else expected
    assert np.abs(read(tmp_path / "x.png", channels=channels) - expected).max() <= 1.5


def test_gray_with_transparency(tmp_path: Path):
    """LA is blended with white."""
    alpha = PICTURE[..., 1]
    Image.fromarray(np.dstack([GRAY, alpha]), mode="LA").save(tmp_path / "x.png")
    expected = over_white(np.stack([GRAY] * 3, -1), alpha)
    assert np.abs(read(tmp_path / "x.png") - expected).max() <= 1.5


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, name: str):
    """16-bit values are scaled linearly from 0..65535 to 0..255 and not clipped."""
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(values).save(tmp_path / name)
    assert Image.open(tmp_path / name).mode.startswith("I")
    assert np.abs(read(tmp_path / name, channels=1)[..., 0] - values / 257).max() <= 0.51


def test_cmyk(tmp_path: Path):
    """CMYK without a profile is converted by subtracting the inks from white."""
    inks = np.dstack([PICTURE, np.zeros_like(GRAY)])
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "x.tif")
    assert np.abs(read(tmp_path / "x.tif") - (255 - PICTURE.astype(int))).max() <= 1


def test_an_unusable_profile_is_left_aside(tmp_path: Path):
    """A profile that does not match the mode, here sRGB in a CMYK file, is ignored."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    inks = np.dstack([PICTURE, np.zeros_like(GRAY)])
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "x.tif", icc_profile=profile)
    assert np.abs(read(tmp_path / "x.tif") - (255 - PICTURE.astype(int))).max() <= 1


def red_and_blue_swapped() -> bytes:
    """Return an sRGB ICC profile with the red and blue primaries swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("size", [(16, 24), (8, 12)])
def test_the_profile_of_an_rgb_file_is_applied(tmp_path: Path, size: tuple[int, int]):
    """A profile with red and blue swapped swaps them in the pixels, scaled or not; an sRGB profile changes nothing."""
    pixels = np.full((16, 24, 3), (230, 20, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", icc_profile=red_and_blue_swapped())
    assert np.abs(read_image(tmp_path / "x.png", size, 3).permute(1, 2, 0).numpy() - pixels[0, 0, ::-1]).max() <= 4
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "y.png", icc_profile=srgb)
    assert np.abs(read_image(tmp_path / "y.png", size, 3).permute(1, 2, 0).numpy() - pixels[0, 0]).max() <= 1


def test_transparency_lies_over_the_chosen_background(tmp_path: Path):
    """RGBA is blended with the given background: half-transparent red over blue."""
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png", (8, 8), 3, background=(0, 0, 255))
    assert (pixels[:, 0, 0] - torch.tensor([128, 0, 127])).abs().max() <= 1


def test_grayscale_of_colours(tmp_path: Path):
    """With one channel, a color image becomes its luma."""
    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    assert np.abs(read(tmp_path / "x.png", channels=1)[..., 0] - luma(PICTURE)).max() <= 1


TURNED = {  # EXIF orientation (TIFF 6.0, tag 274) -> function from upright to stored pixels
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, name: str):
    """The EXIF orientation is applied: the pixels are those of the upright image."""
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](PICTURE))
    options = {"lossless": True} if name == "x.webp" else {}
    Image.fromarray(stored).save(tmp_path / name, exif=exif, **options)
    assert np.array_equal(read(tmp_path / name), PICTURE)


@pytest.mark.parametrize("orientation", TURNED)
def test_large_photos_are_turned_upright(tmp_path: Path, orientation: int):
    """The EXIF orientation is also applied to a JPEG that the decoder downscales."""
    quarters = np.array([[[220, 30, 30], [30, 200, 30]], [[30, 30, 220], [200, 200, 40]]], dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    stored = TURNED[orientation](quarters).repeat(96, 0).repeat(96, 1)
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert np.abs(read(tmp_path / "x.jpg", 16, 16)[4::8, 4::8] - quarters).max() < 12


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lossless", [False, True])
def test_only_lossy_jpegs_are_downscaled_by_the_decoder(progressive: bool, lossless: bool):
    """Pillow before version 13 writes beyond its buffer when a lossless JPEG is downscaled while decoding."""
    file = io.BytesIO()
    Image.new("L", (400, 400)).save(file, "JPEG", progressive=progressive, comment=b"\xff\xc0")
    content = bytearray(file.getvalue())
    if lossless:
        lossy_frame = content.index(b"\xff\xc2\x00" if progressive else b"\xff\xc0\x00")
        content[lossy_frame + 1] = 0xC3
    with open_encoded(bytes(content)) as image:
        draft(image, (100, 100), None)
        assert image.size == ((400, 400) if lossless else (100, 100))


@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40), (200, 100), (100, 300)])
def test_the_centre_is_cropped(tmp_path: Path, height: int, width: int):
    """An image that is not square is cropped to the square at its center."""
    side = min(height, width)
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    middle = np.zeros((side, side, 3), dtype=np.uint8)
    middle[:, : side // 2] = [200, 40, 40]
    middle[:, side // 2 :] = [40, 40, 200]
    picture[top : top + side, left : left + side] = middle
    Image.fromarray(picture).save(tmp_path / "x.png")
    expected = np.repeat([[[200, 40, 40]] * 5 + [[40, 40, 200]] * 5], 10, 0)
    beside_the_edge = [0, 1, 2, 7, 8, 9]
    assert np.abs(read(tmp_path / "x.png", 10, 10) - expected)[1:-1, beside_the_edge].max() <= 30
    assert read(tmp_path / "x.png", 10, 10)[..., 1].max() < 100  # no white from the cropped area


def test_height_and_width_are_not_swapped(tmp_path: Path):
    """A size that is not square is interpreted as (height, width)."""
    picture = np.zeros((4, 12, 3), dtype=np.uint8)
    picture[:, 6:] = 255
    Image.fromarray(picture).save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png", 4, 12), picture)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("spoil", [lambda x: x[: len(x) * 2 // 3], lambda x: b"", lambda x: b"<html>"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, spoil):
    """A truncated, empty or non-image file raises a UserError with its path."""
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"bad{suffix}"
    Image.fromarray(big).save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=rf"bad\{suffix}: cannot be read as an image"):
        read(path)


def test_postscript_is_not_run(tmp_path: Path):
    """A PostScript file with the extension of an image is refused; Pillow would start Ghostscript with it."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(UserError, match=r"picture\.png: cannot be read as an image .*PostScript"):
        read_image(path, (8, 8), 3)


def test_a_missing_file_is_named(tmp_path: Path):
    """A missing file raises a UserError with its path."""
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        read(tmp_path / "gone.png")


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int):
    """A small file that declares 100 or 900 million pixels raises a UserError."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"
    data = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data)
    with pytest.raises(UserError, match=r"bomb\.png.*decompression bomb"):
        read(path)


def test_spoilt_files_give_pixels_or_a_message(tmp_path: Path):
    """Reading a file with changed or missing bytes returns pixels or raises a UserError.

    tests/by_hand/fuzz_images.py runs the same check on more files.
    """
    found = fuzz(50, seed=1, folder=tmp_path)
    assert found["pixels"] > 5 and found["message"] > 5
