"""Images of many formats, modes and orientations; skipped if their folder does not exist."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from tests.conftest import ROOT, launch, write_config
from vqvae2.codes import CodeStore
from vqvae2.images.decode import read_image
from vqvae2.images.survey_record import read_record, record_path

RAW = ROOT.parent / "shared" / "data" / "raw_varied"
SIDE = 64
UPRIGHT = {  # EXIF orientation -> function from stored to upright pixels
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}
pytestmark = pytest.mark.skipif(not RAW.exists(), reason="needs a folder of varied pictures")


def spoilt(path: Path) -> bool:
    """Whether the file name marks a file that cannot be decoded or a decompression bomb."""
    return path.name.startswith(("bad_", "bomb_"))


READABLE = [path for path in sorted(RAW.glob("*")) if not spoilt(path)] if RAW.exists() else []


def thumbnail(path: Path) -> torch.Tensor:
    """Independent reference for `read_image`.

    It decodes at full size, applies the profile, transparency and orientation, and resizes with PyTorch.
    """
    with Image.open(path) as image:
        orientation, profile = image.getexif().get(0x0112, 1), image.info.get("icc_profile")
        image.load()
        if profile and image.mode in ("RGB", "CMYK"):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        rgba = np.array(image.convert("RGBA"), dtype=np.float64)
    alpha = rgba[..., 3:] / 255
    pixels = rgba[..., :3] * alpha + 255 * (1 - alpha)
    pixels = torch.from_numpy(UPRIGHT.get(orientation, lambda x: x)(pixels).copy()).permute(2, 0, 1)[None]
    height, width = pixels.shape[2:]
    scale = SIDE / min(height, width)
    size = (max(SIDE, round(height * scale)), max(SIDE, round(width * scale)))
    scaled = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)[0]
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return scaled[:, top : top + SIDE, left : left + SIDE]


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore")
def test_each_picture_is_upright_and_in_true_colour(path: Path):
    """Block means are close to those of the reference and, for the orientation test images, far from its rotations.

    Comparing block means tolerates a different resampling filter.
    """
    seen, expected = (F.avg_pool2d(x.double(), 8) for x in (read_image(path, (SIDE, SIDE), 3), thumbnail(path)))
    assert (seen - expected).abs().mean() < 6
    if "_Landscape_" in path.name or "_Portrait_" in path.name:  # images that are not symmetric
        assert min((seen.rot90(i, (1, 2)) - expected).abs().mean() for i in (1, 2, 3)) > 12


def test_they_go_through_the_stages(tmp_path: Path):
    """Survey, stage 1 and stage 2 run on the folder with two processes and a worker; unreadable files are listed."""
    config = write_config(tmp_path, tmp_path / "run")
    flags = ["--config", str(config), "--images.source", "folder", "--images.root", str(RAW), "--images.workers", "1"]
    launch("stage1", *flags, processes=2)
    survey = read_record(record_path(tmp_path / "run", "train"))
    assert survey is not None
    unreadable = sorted(path.name for path in RAW.glob("*") if spoilt(path))
    assert sorted(file.name for file in survey if file.error) == unreadable
    launch("stage2", *flags, processes=2)
    stores = [CodeStore(tmp_path / "run" / "codes" / f"{part}.lmdb") for part in ("train", "validation")]
    assert sorted(record.name for store in stores for record in store) == [path.name for path in READABLE]
