"""Selection of the codes that are kept for a region of the image."""

import pytest
import torch

from vqvae2.config import LevelGrid
from vqvae2.errors import UserError
from vqvae2.prior.kept import keep_coarser, keep_region, parse_region, region_mask

SIZE = (16, 32)
SHAPES = [LevelGrid("top", 2, 4, 12), LevelGrid("bottom", 4, 8, 300)]
CODES = {x.name: torch.arange(3 * x.height * x.width).view(3, x.height, x.width) for x in SHAPES}


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("top", (0, 0, 32, 8)),
        ("bottom", (0, 8, 32, 16)),
        ("left", (0, 0, 16, 16)),
        ("right", (16, 0, 32, 16)),
        ("4,0,20,16", (4, 0, 20, 16)),
    ],
)
def test_region_is_a_box_of_pixels(text: str, box: tuple[int, int, int, int]) -> None:
    """A region is a half by name, or a box (left, top, right, bottom) as in Pillow's `crop`."""
    assert parse_region(text, SIZE) == box


@pytest.mark.parametrize("text", ["", "middle", "1,2,3", "0,0,33,16", "8,0,8,16", "-1,0,8,8", "0,12,8,4", "a,b,c,d"])
def test_bad_region_is_refused(text: str) -> None:
    """An invalid region raises a UserError that quotes it."""
    with pytest.raises(UserError, match=f"keep: '{text}'"):
        parse_region(text, SIZE)


def test_codes_whose_pixels_all_lie_inside_are_kept() -> None:
    """A code is kept if all of its pixels lie inside the region.

    Columns 4 to 20 contain the second top code of a row and the second to fifth bottom codes.
    """
    kept = keep_region(CODES, SHAPES, region_mask("4,0,20,8", SIZE), SIZE)
    assert kept["top"].mask.tolist() == [[False, True, False, False], [False] * 4]
    row = [False, True, True, True, True, False, False, False]
    assert kept["bottom"].mask.tolist() == [row, row, [False] * 8, [False] * 8]
    assert torch.equal(kept["bottom"].codes, CODES["bottom"])


def test_region_without_a_whole_code_is_refused() -> None:
    """A region that contains no whole code raises a UserError with the size of a code in pixels."""
    with pytest.raises(UserError, match="8x8 pixels"):
        keep_region(CODES, SHAPES, region_mask("4,0,11,16", SIZE), SIZE)


def test_coarser_levels_are_kept_whole() -> None:
    """All codes of coarser levels are kept: for the bottom level the top codes, for the top level none."""
    kept = keep_coarser(CODES, "bottom")
    assert list(kept) == ["top"] and kept["top"].mask.all() and torch.equal(kept["top"].codes, CODES["top"])
    assert keep_coarser(CODES, "top") == {}
    with pytest.raises(UserError, match=r"'middle'.*top, bottom"):
        keep_coarser(CODES, "middle")


def test_mask_of_any_form_keeps_codes_whose_pixels_are_all_kept() -> None:
    """A mask of pixels is applied to each level; a single pixel that is not kept frees the codes that cover it."""
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[9, 13] = False
    kept = keep_region(CODES, SHAPES, region_mask(mask, SIZE), SIZE)
    assert (~kept["top"].mask).nonzero().tolist() == [[1, 1]]
    assert (~kept["bottom"].mask).nonzero().tolist() == [[2, 3]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(16, 32, dtype=torch.bool), "keeps all pixels"),
        (torch.zeros(16, 32, dtype=torch.bool), "keeps no pixel"),
        (torch.ones(32, 16, dtype=torch.bool), r"bool mask of shape \(16, 32\)"),
        (torch.ones(16, 32), "torch.float32 is not valid"),
    ],
    ids=["white", "black", "turned", "float"],
)
def test_bad_mask_is_refused(mask: torch.Tensor, message: str) -> None:
    """A mask that keeps everything or nothing, or of another size or dtype, raises a UserError that says so."""
    with pytest.raises(UserError, match=message):
        region_mask(mask, SIZE)
