"""Validation of an autoencoder: warnings about low codebook usage, and pictures of reconstructions."""

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from vqvae2.autoencoder.artefact import build_autoencoder
from vqvae2.autoencoder.validation import usage_warnings, validate_autoencoder
from vqvae2.config import AutoencoderConfig, ImagesConfig, LevelConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import Crop
from vqvae2.images.sources import open_images
from vqvae2.training.window import validation_window

CONFIG = AutoencoderConfig([LevelConfig("top", 8, codebook_size=512), LevelConfig("bottom", 4, codebook_size=512)])


def warnings(top: float, bottom: float, num_images: int) -> list[str]:
    return usage_warnings({"top_usage": top, "bottom_usage": bottom}, CONFIG, (32, 32), num_images)


def test_collapsed_level_is_named_with_its_remedies() -> None:
    """With a usage below a tenth, the warning names the level, its usage and the fields to change."""
    (line,) = warnings(3 / 512, 60 / 512, num_images=300)
    assert "level top uses 3 of its 512 codes" in line
    assert "autoencoder.continuous_steps" in line and "autoencoder.revival_window_images" in line


@pytest.mark.parametrize(("used", "num_images", "lines"), [(51, 300, 1), (52, 300, 0), (2, 1, 0), (1, 1, 1)])
def test_limit_is_a_tenth_of_the_codes_that_could_be_used(used: int, num_images: int, lines: int) -> None:
    """The limit is a tenth of the codes that can occur: one image has at most 16 codes at the top level."""
    assert len(warnings(used / 512, 1.0, num_images)) == lines


def test_a_picture_that_cannot_be_made_does_not_stop_the_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An image that broke is replaced in the picture; a picture that cannot be written is only warned of."""
    images = open_images(ImagesConfig(source="shapes", size=16, max_images=16), seed=0).train
    broken = validation_window(len(images))[0]

    def load(index: int, crop: Crop | None = None) -> Tensor:
        if index == broken:
            raise UserError(f"{index}.png: cannot be read")
        return images.load(index)

    autoencoder = build_autoencoder(
        AutoencoderConfig([LevelConfig("top", 8), LevelConfig("bottom", 4)], 8, 8, 1), channels=3, seed=0
    )
    given = (autoencoder.eval(), replace(images, load=load), 8, 0, Accelerator(cpu=True))
    written = validate_autoencoder(*given, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (2 + 8 * 18, 2 + 3 * 18)
    (tmp_path / "file").touch()
    assert validate_autoencoder(*given, tmp_path / "file" / "grid.png") == written
    assert "file/grid.png could not be written" in capsys.readouterr().err
