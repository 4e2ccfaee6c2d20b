"""Rendering of the synthetic shapes."""

import numpy as np
import pytest

from vqvae2.images.shapes import CLASSES, render


def pixels(*arguments) -> np.ndarray:
    """Return a rendered picture as a float array (height, width, 3)."""
    return np.asarray(render(*arguments), dtype=np.float64)


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_a_picture_is_a_function_of_its_key(label: int):
    """The same key and label give the same pixels; another index, split or seed gives different pixels."""
    picture = pixels((0, "train", 3), label, (24, 24))
    assert np.array_equal(picture, pixels((0, "train", 3), label, (24, 24)))
    for other in ((0, "train", 4), (0, "validation", 3), (1, "train", 3)):
        assert not np.array_equal(picture, pixels(other, label, (24, 24)))


def test_the_label_is_the_only_difference_between_classes():
    """With the same key, the pictures of any two classes differ."""
    pictures = [pixels((0, "train", 0), label, (32, 32)) for label in range(len(CLASSES))]
    for i, one in enumerate(pictures):
        assert all(np.abs(one - other).max() > 25 for other in pictures[:i])


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_the_shape_stands_out_and_leaves_the_border_free(label: int):
    """In some channel, the range of values over the picture exceeds the range along its border."""
    for index in range(8):
        picture = pixels((0, "train", index), label, (48, 48))
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        contrast = max(np.ptp(picture[..., c]) - np.ptp(border[:, c]) for c in range(3))
        assert contrast > 10


def test_a_ring_has_a_hole_and_a_circle_has_none():
    """The center of mass of most rings has the background color, and that of most circles does not."""

    def centre_is_ground(label: int, index: int) -> bool:
        picture = pixels((0, "train", index), label, (64, 64))
        ground = picture[0, 0]
        away = np.abs(picture - ground).max(axis=-1) > 0.25 * 255
        y, x = np.nonzero(away)
        middle = picture[round(y.mean()), round(x.mean())]
        return np.abs(middle - ground).max() < 0.25 * 255

    assert sum(centre_is_ground(CLASSES.index("ring"), i) for i in range(20)) > 15
    assert sum(centre_is_ground(CLASSES.index("circle"), i) for i in range(20)) < 5


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16), (2, 2), (8, 8)])
def test_any_size_can_be_drawn(height: int, width: int):
    """Wide, tall and very small pictures of every class have the requested (height, width)."""
    for index in range(16):
        assert pixels((0, "train", index), index % len(CLASSES), (height, width)).shape == (height, width, 3)
