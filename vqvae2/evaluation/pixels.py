"""Metrics between reconstructions and their originals. Images are uint8 (B, C, H, W)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

from vqvae2.images.convert import to_float
from vqvae2.images.distances import mse, mse_0_1, psnr
from vqvae2.images.similarity import SSIM_WINDOW, ssim
from vqvae2.run.directory import sha256
from vqvae2.run.precision import widest_float

Measure = Callable[[Tensor, Tensor], Tensor]  # (originals, reconstructions) -> one value per image, (B,)
LPIPS_URL = AlexNet_Weights.IMAGENET1K_V1.url
LPIPS_SMALLEST = 31  # pixels; the second pooling layer of AlexNet has no output for smaller images


def measures_for(height_width: tuple[int, int], device: torch.device) -> dict[str, Measure]:
    """Metrics available for an image size: SSIM and LPIPS if it is large enough, LPIPS if its weights exist."""
    measures: dict[str, Measure] = {"mse": mse, "mse_0_1": mse_0_1, "psnr": psnr}
    if min(height_width) >= SSIM_WINDOW:
        measures["ssim"] = ssim
    if min(height_width) >= LPIPS_SMALLEST and lpips_weights_are_there():
        network = LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)

        def lpips(originals: Tensor, reconstructions: Tensor) -> Tensor:
            """LPIPS (Zhang et al. 2018) with AlexNet, in float32 even inside an autocast region."""
            images = (to_float(x).expand(-1, 3, -1, -1) for x in (reconstructions, originals))
            with torch.autocast(device.type, enabled=False):
                return network(*images).to(widest_float(device)).expand(len(originals))

        measures["lpips"] = lpips
    return measures


def lpips_weights() -> Path:
    """Path where torch.hub stores the weights of torchvision's AlexNet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(LPIPS_URL).name


def lpips_weights_are_there() -> bool:
    """Whether the weights file exists and its SHA-256 starts with the digits at the end of the file name."""
    path = lpips_weights()
    return path.exists() and sha256(path).startswith(path.stem.rsplit("-", 1)[-1])
