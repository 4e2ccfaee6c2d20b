"""Structural similarity between images and their reconstructions, both uint8 (B, C, H, W)."""

from torch import Tensor

from vqvae2.run.precision import widest_float

SSIM_WINDOW = 11  # pixels; SSIM is not computed for smaller images


def ssim(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), Gaussian window of 11 pixels, sigma 1.5; 1 for equal images.

    The mean is taken over all pixels around which the whole window lies inside the image.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds to import

    images, edge = (reconstructions.float(), originals.float()), SSIM_WINDOW // 2
    _, maps = structural_similarity_index_measure(*images, data_range=255.0, reduction="none", return_full_image=True)
    return maps[..., edge:-edge, edge:-edge].to(widest_float(maps.device)).mean(dim=(1, 2, 3))
