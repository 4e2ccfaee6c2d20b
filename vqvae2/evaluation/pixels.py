"""How close reconstructions are to their originals, pixel by pixel; pictures are uint8 (B, C, H, W)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

from vqvae2.images.convert import to_float
from vqvae2.images.distances import mse, mse_0_1, psnr
from vqvae2.run.directory import sha256
from vqvae2.run.precision import widest_float

Measure = Callable[[Tensor, Tensor], Tensor]  # originals, reconstructions -> a figure of each image, (B,)
LPIPS_URL = AlexNet_Weights.IMAGENET1K_V1.url
SSIM_WINDOW = 11  # pixels; smaller pictures have no SSIM
LPIPS_SMALLEST = 31  # pixels; AlexNet's second pooling has no output below


def ssim(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), Gaussian window of 11 pixels, sigma 1.5; 1 is equality.

    The mean is taken where the window fits into the picture.
    """
    images, edge = (reconstructions.float(), originals.float()), SSIM_WINDOW // 2
    _, maps = structural_similarity_index_measure(*images, data_range=255.0, reduction="none", return_full_image=True)
    return maps[..., edge:-edge, edge:-edge].to(widest_float(maps.device)).mean(dim=(1, 2, 3))


def measures_for(height_width: tuple[int, int], device: torch.device) -> dict[str, Measure]:
    """The measures that can be taken: SSIM and LPIPS of images that are large enough, LPIPS where its weights are."""
    measures: dict[str, Measure] = {"mse": mse, "mse_0_1": mse_0_1, "psnr": psnr}
    if min(height_width) >= SSIM_WINDOW:
        measures["ssim"] = ssim
    if min(height_width) >= LPIPS_SMALLEST and lpips_weights_are_there():
        network = LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)

        def lpips(originals: Tensor, reconstructions: Tensor) -> Tensor:
            """Learned perceptual distance (Zhang et al. 2018), with AlexNet, in float32 whatever surrounds it."""
            images = (to_float(x).expand(-1, 3, -1, -1) for x in (reconstructions, originals))
            with torch.autocast(device.type, enabled=False):
                return network(*images).to(widest_float(device)).expand(len(originals))

        measures["lpips"] = lpips
    return measures


def lpips_weights() -> Path:
    """Where PyTorch keeps torchvision's AlexNet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(LPIPS_URL).name


def lpips_weights_are_there() -> bool:
    """Whether they lie there and have the SHA-256 whose first digits are the end of their name."""
    path = lpips_weights()
    return path.exists() and sha256(path).startswith(path.stem.rsplit("-", 1)[-1])


def pixel_nats(images: Tensor, means: Tensor, variance: float) -> Tensor:
    """-log p(x | z_q(x)) in nats of each image, (B,): a Gaussian discretised to the 256 values of a pixel.

    A value's probability is the Gaussian's mass within half a step of it; the lowest and the highest value take the
    tails as well, as in PixelCNN++ (Salimans et al. 2017, equation 2, there with a logistic distribution).

    Args:
        images: uint8 (B, C, H, W).
        means: the reconstructions, (B, C, H, W) in [-1, 1].
        variance: of all pixels, on the same scale.
    """
    scale = 127.5 * variance**0.5
    wide = widest_float(images.device)  # for the tails
    distance = images.to(wide) - (means.to(wide) + 1) * 127.5
    below = torch.where(images == 0, -torch.inf, (distance - 0.5) / scale)
    above = torch.where(images == 255, torch.inf, (distance + 0.5) / scale)
    # the same mass mirrored to the left, where the logarithm of the normal distribution is exact
    left, right = torch.where(distance > 0, -above, below), torch.where(distance > 0, -below, above)
    log_right = torch.special.log_ndtr(right)
    log_mass = log_right + torch.log(-torch.expm1(torch.special.log_ndtr(left) - log_right))
    return -log_mass.sum(dim=(1, 2, 3))
