"""How close reconstructions are to their originals, pixel by pixel; pictures are uint8 (B, C, H, W)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

from vqvae2.evaluation.reconstruction import decibels
from vqvae2.images.convert import to_float
from vqvae2.run_directory import sha256

Measure = Callable[[Tensor, Tensor], Tensor]  # originals, reconstructions -> a figure of each image, (B,)
LPIPS_URL = AlexNet_Weights.IMAGENET1K_V1.url
SSIM_WINDOW = 11  # pixels; smaller pictures have no SSIM


def mse(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of values in [-1, 1]."""
    return (to_float(originals) - to_float(reconstructions)).square().mean(dim=(1, 2, 3)).double()


def mse_0_1(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of values in [0, 1]: a quarter of `mse`."""
    return mse(originals, reconstructions) / 4


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels."""
    return decibels(mse(originals, reconstructions))


def ssim(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), Gaussian window of 11 pixels, sigma 1.5; 1 is equality.

    The mean is taken where the window fits into the picture.
    """
    images, edge = (reconstructions.float(), originals.float()), SSIM_WINDOW // 2
    _, maps = structural_similarity_index_measure(*images, data_range=255.0, reduction="none", return_full_image=True)
    return maps[..., edge:-edge, edge:-edge].double().mean(dim=(1, 2, 3))


def measures_for(height_width: tuple[int, int], device: torch.device) -> dict[str, Measure]:
    """The measures that can be taken: SSIM of pictures that are large enough, LPIPS where its weights lie ready."""
    measures: dict[str, Measure] = {"mse": mse, "mse_0_1": mse_0_1, "psnr": psnr}
    if min(height_width) >= SSIM_WINDOW:
        measures["ssim"] = ssim
    if lpips_weights_are_there():
        network = LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)

        def lpips(originals: Tensor, reconstructions: Tensor) -> Tensor:
            """Learned perceptual distance (Zhang et al. 2018), with AlexNet."""
            images = (to_float(x).expand(-1, 3, -1, -1) for x in (reconstructions, originals))
            return network(*images).double().expand(len(originals))

        measures["lpips"] = lpips
    return measures


def lpips_weights() -> Path:
    """Where PyTorch keeps torchvision's AlexNet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(LPIPS_URL).name


def lpips_weights_are_there() -> bool:
    """Whether they lie there and have the SHA-256 whose first digits are the end of their name."""
    path = lpips_weights()
    return path.exists() and sha256(path).startswith(path.stem.rsplit("-", 1)[-1])
