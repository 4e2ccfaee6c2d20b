"""Pictures of the demo: uploads, painted areas, and files of what is shown."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.demo.pictures import BRUSH_COLOR, BRUSH_OPACITY, REGIONS, ShownFiles, enlargement, kept_outside, read_upload
from vqvae2.errors import UserError
from vqvae2.images.decode import read_image

SIZE = (28, 28)


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    assert [enlargement(*size) for size in ((28, 28), (16, 32), (256, 256), (255, 1), (1024, 64))] == [10, 8, 1, 2, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_files_show_the_enlarged_image(tmp_path: Path, channels: int) -> None:
    image = torch.randint(256, (channels, 30, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Image.open(ShownFiles(tmp_path).path(image)) as file:
        assert file.size == (20 * 9, 30 * 9) and file.format == "PNG"
        pixels = np.asarray(file).reshape(30, 9, 20, 9, channels)
    expected = image.permute(1, 2, 0).numpy()
    assert all((pixels[:, i, :, j] == expected).all() for i in range(9) for j in range(9))


def test_a_file_is_written_once(tmp_path: Path) -> None:
    """The same image has the same file, which is not written again; other images and other shapes have others."""
    files = ShownFiles(tmp_path)
    image = torch.zeros(1, 4, 8, dtype=torch.uint8)
    path = files.path(image)
    os.utime(path, (0, 0))
    before = os.stat(path)
    assert files.path(image.clone()) == path
    after = os.stat(path)
    assert after.st_ino == before.st_ino and after.st_mtime > 0  # in use: not an old file
    assert len({path, files.path(image + 1), files.path(image.view(1, 8, 4))}) == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_uploads_of_any_mode_and_size_are_read_as_training_images(tmp_path: Path, mode: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 31), dtype=np.uint8)
    image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    image.save(path)
    picture = read_upload(str(path), SIZE, channels)
    assert picture.shape == (1, channels, *SIZE) and picture.dtype == torch.uint8
    assert torch.equal(picture[0], read_image(path, SIZE, channels))


def test_uploads_that_cannot_be_decoded_are_refused(tmp_path: Path) -> None:
    """The message has the name of the file, but not the server's folder."""
    cut, text, bomb = (tmp_path / name for name in ("cut.png", "text.jpg", "bomb.png"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    text.write_text("not an image")
    Image.new("1", (13000, 13000)).save(bomb)
    for path in (cut, text, bomb, tmp_path / "missing.png"):
        with pytest.raises(UserError, match=f"^{path.name}: cannot be read as an image") as caught:
            read_upload(str(path), SIZE, 1)
        assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def layer(box: tuple[int, int, int, int] | None, side: int = 280) -> bytes:
    """A transparent layer, with a box painted with the page's brush."""
    image = Image.new("RGBA", (side, side))
    if box is not None:
        color = tuple(int(BRUSH_COLOR[i : i + 2], 16) for i in (1, 3, 5))
        image.paste((*color, round(255 * BRUSH_OPACITY)), box)
    file = io.BytesIO()
    image.save(file, "WEBP" if box is None else "PNG", lossless=True)
    return file.getvalue()


def test_painted_pixels_are_sampled_and_the_others_kept() -> None:
    """Layers are added; they are 10 times as large as the picture."""
    expected = torch.ones(SIZE, dtype=torch.bool)
    expected[5:10, 3:20] = False
    expected[20:, 20:] = False
    layers = [layer((30, 50, 200, 100)), layer((200, 200, 280, 280)), layer(None)]
    assert torch.equal(kept_outside("Painted area", layers, SIZE), expected)


@pytest.mark.parametrize(
    ("region", "rows", "columns"),
    [
        ("Top half", (0, 14), (0, 28)),
        ("Bottom half", (14, 28), (0, 28)),
        ("Left half", (0, 28), (0, 14)),
        ("Right half", (0, 28), (14, 28)),
        ("Center", (7, 21), (7, 21)),
    ],
)
def test_areas_can_be_chosen_without_painting(region: str, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """What is painted does not matter then."""
    assert region in REGIONS
    kept = kept_outside(region, [layer((0, 0, 280, 280))], SIZE)
    expected = torch.ones(SIZE, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = False
    assert torch.equal(kept, expected)


def test_masks_that_keep_all_or_nothing_are_refused() -> None:
    for layers in ([], [layer(None)]):
        with pytest.raises(UserError, match="Nothing is painted: paint over"):
            kept_outside("Painted area", layers, SIZE)
    with pytest.raises(UserError, match="Everything is painted: erase"):
        kept_outside("Painted area", [layer((0, 0, 280, 280))], SIZE)
    with pytest.raises(UserError, match="painted area: cannot be read as an image"):
        kept_outside("Painted area", [b"not an image"], SIZE)
    with pytest.raises(UserError, match="'Middle' is not valid"):
        kept_outside("Middle", [], SIZE)
