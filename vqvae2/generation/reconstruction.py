"""Reconstructions of images with the metrics of each image."""

import math
from typing import NamedTuple

from torch import Tensor

from vqvae2.generation.likelihood import ImageLikelihood
from vqvae2.images.distances import mse, psnr
from vqvae2.images.similarity import SSIM_WINDOW, ssim


class Reconstructions(NamedTuple):
    """Reconstructions of images, and what they cost.

    Attributes:
        images: decoded from the codes of all levels, uint8 (B, C, H, W).
        coarsest: decoded from the codes of the coarsest level alone, uint8 (B, C, H, W).
        mse: mean squared error of pixel values in [-1, 1], (B,).
        psnr: peak signal-to-noise ratio in decibels, (B,).
        ssim: structural similarity, (B,); None if the images are smaller than its window of 11 pixels.
        likelihood: nats of the codes and bits per dimension; None without priors.
        reason: why `likelihood` or its bits per dimension are None; None if they are not.
    """

    images: Tensor
    coarsest: Tensor
    mse: Tensor
    psnr: Tensor
    ssim: Tensor | None
    likelihood: ImageLikelihood | None
    reason: str | None

    @property
    def bytes(self) -> Tensor | None:
        """Size in bytes of the codes of each image, (B,), if an ideal entropy coder wrote them with the priors."""
        if self.likelihood is None:
            return None
        return sum(self.likelihood.nats.values(), start=0 * self.mse) / (8 * math.log(2))


def measured(
    originals: Tensor, images: Tensor, coarsest: Tensor, likelihood: ImageLikelihood | None, reason: str | None
) -> Reconstructions:
    """Measure the reconstructions `images` of `originals`, uint8 (B, C, H, W), on the CPU."""
    similarity = ssim(originals, images) if min(originals.shape[2:]) >= SSIM_WINDOW else None
    return Reconstructions(
        images, coarsest, mse(originals, images), psnr(originals, images), similarity, likelihood, reason
    )
