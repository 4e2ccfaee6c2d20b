"""Warnings about low codebook usage in validation."""

import pytest

from vqvae2.autoencoder.validation import usage_warnings
from vqvae2.config import AutoencoderConfig, LevelConfig

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
