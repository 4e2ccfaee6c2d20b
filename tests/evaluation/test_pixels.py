"""Pixel metrics, compared with scikit-image."""

import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from vqvae2.evaluation import pixels


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Originals and reconstructions that differ by noise of several strengths."""
    generator = torch.Generator().manual_seed(0)
    originals = torch.randint(0, 256, (4, 3, 24, 32), generator=generator).float()
    noise = torch.randn(originals.shape, generator=generator) * torch.tensor([1, 5, 20, 60])[:, None, None, None]
    return originals.to(torch.uint8), (originals + noise).clamp(0, 255).to(torch.uint8)


def by_scikit_image(pairs, figure) -> list[float]:
    return [figure(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy()) for a, b in zip(*pairs, strict=True)]


def test_psnr_and_mse(pairs):
    expected = by_scikit_image(pairs, lambda a, b: peak_signal_noise_ratio(a, b, data_range=255))
    assert pixels.psnr(*pairs).tolist() == pytest.approx(expected, rel=1e-5)
    expected = by_scikit_image(pairs, lambda a, b: mean_squared_error(a / 255.0, b / 255.0))
    assert pixels.mse_0_1(*pairs).tolist() == pytest.approx(expected, rel=1e-5)
    assert pixels.mse(*pairs).tolist() == pytest.approx([4 * x for x in expected], rel=1e-5)


def test_ssim(pairs):
    def ssim(a: np.ndarray, b: np.ndarray) -> float:
        return structural_similarity(
            a, b, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )

    assert pixels.ssim(*pairs).tolist() == pytest.approx(by_scikit_image(pairs, ssim), abs=1e-5)


def test_small_pictures_have_no_ssim():
    assert "ssim" in pixels.measures_for((11, 16), torch.device("cpu"))
    assert "ssim" not in pixels.measures_for((8, 16), torch.device("cpu"))


class FakeLpips(torch.nn.Module):
    """Stands in for LPIPS and returns a matrix product that reveals the precision it was computed in."""

    def __init__(self, net_type: str):
        super().__init__()

    def forward(self, reconstructions: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        one = torch.full((1, 1), 1 + 2**-12)  # bf16 rounds it to 1
        return (one @ one)[0, 0]


def test_lpips_is_left_out_below_the_size_it_can_take(monkeypatch):
    """LPIPS is left out below LPIPS_SMALLEST, the smallest size for which AlexNet's last ReLU has an output."""
    monkeypatch.setattr(pixels, "lpips_weights_are_there", lambda: True)
    monkeypatch.setattr(pixels, "LearnedPerceptualImagePatchSimilarity", FakeLpips)
    features = torchvision.models.alexnet().features[:12]
    smallest = pixels.LPIPS_SMALLEST
    assert features(torch.zeros(1, 3, smallest, 40)).shape[2] == 1
    with pytest.raises(RuntimeError, match="Output size is too small"):
        features(torch.zeros(1, 3, smallest - 1, 40))
    assert "lpips" in pixels.measures_for((smallest, 40), torch.device("cpu"))
    assert "lpips" not in pixels.measures_for((40, smallest - 1), torch.device("cpu"))


def test_lpips_is_computed_in_float32(monkeypatch, pairs):
    monkeypatch.setattr(pixels, "lpips_weights_are_there", lambda: True)
    monkeypatch.setattr(pixels, "LearnedPerceptualImagePatchSimilarity", FakeLpips)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.ones(1, 1).matmul(torch.ones(1, 1)).dtype == torch.bfloat16
        lpips = pixels.measures_for((32, 32), torch.device("cpu"))["lpips"]
        assert lpips(*pairs)[0].item() > 1


def test_lpips_reads_the_official_weights_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not pixels.lpips_weights_are_there()
    path = pixels.lpips_weights()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another file")
    assert not pixels.lpips_weights_are_there()
