"""Distributions of the pixels given the decoder's output: Bernoulli, and a Gaussian discretized to 256 values."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.family.member import Observation
from vqvae2.images.convert import to_float, to_uint8
from vqvae2.run.precision import widest_float

FIRST_DEVIATION = 0.3  # of pixels in [-1, 1] from their means, before training
SMALLEST_LOG_DEVIATION = math.log(1 / 2550)  # a tenth of half a step between two pixel values


class Pixels(nn.Module):
    """p(x | output), independent for each pixel value given the decoder's output (B, C, H, W)."""

    def nats(self, output: Tensor, images: Tensor) -> Tensor:
        """-log p(x | output) of uint8 images (B, C, H, W) in nats per image, (B,)."""
        raise NotImplementedError

    def expected(self, output: Tensor) -> Tensor:
        """Means of the pixels, float32 (B, C, H, W), on the scale of pixels in [-1, 1]."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """Means of the pixels, uint8 (B, C, H, W)."""
        return to_uint8(self.expected(output))


class Bernoulli(Pixels):
    """Pixels 0 or 255 with the output as logits: -log p(x) = sum of softplus(l) - x l, with x in {0, 1}."""

    def nats(self, output: Tensor, images: Tensor) -> Tensor:
        values = F.binary_cross_entropy_with_logits(output.float(), images.float() / 255, reduction="none")
        return values.sum(dim=(1, 2, 3))

    def expected(self, output: Tensor) -> Tensor:
        return 2 * output.float().sigmoid() - 1


class DiscretisedGaussian(Pixels):
    """A Gaussian around the output with one learned standard deviation, on pixels in [-1, 1], see `gaussian_nats`."""

    def __init__(self) -> None:
        super().__init__()
        self.log_deviation = nn.Parameter(torch.tensor(math.log(FIRST_DEVIATION)))

    def nats(self, output: Tensor, images: Tensor) -> Tensor:
        return gaussian_nats(images, output, self.log_deviation.clamp(min=SMALLEST_LOG_DEVIATION)).to(torch.float32)

    def expected(self, output: Tensor) -> Tensor:
        return output.float()


def gaussian_nats(images: Tensor, means: Tensor, log_deviation: Tensor) -> Tensor:
    """-log p(x) of each image in nats, (B,), for a Gaussian discretized to the 256 pixel values, with gradients.

    The value of `vqvae2.autoencoder.likelihood.pixel_nats`: the mass within half a step of the pixel value, with the
    tails for 0 and 255. There, the missing end of the interval is replaced by a finite one, so that gradients are.

    Args:
        images: uint8 (B, C, H, W).
        means: (B, C, H, W), on the scale of pixels in [-1, 1].
        log_deviation: logarithm of the standard deviation on that scale, a scalar.
    """
    wide = widest_float(images.device)  # precision for the tails
    half = 1 / 255  # half of the step between two pixel values in [-1, 1]
    distance = (to_float(images, wide) - means.to(wide)) * (-log_deviation.to(wide)).exp()
    step = half * (-log_deviation.to(wide)).exp()
    right_side = distance > 0  # mirrored to the left, where log_ndtr is accurate
    near = torch.where(right_side, step - distance, distance + step)
    log_near = torch.special.log_ndtr(near)
    log_mass = log_near + torch.log(-torch.expm1(torch.special.log_ndtr(near - 2 * step) - log_near))
    # 0 also includes all below it, 255 all above it
    edge = torch.where(images == 0, distance + step, step - distance)
    log_tail = torch.special.log_ndtr(edge)
    is_edge = (images == 0) | (images == 255)
    return -torch.where(is_edge, log_tail, log_mass).sum(dim=(1, 2, 3))


def pixels_of(observation: Observation) -> Pixels:
    """A new distribution of pixels."""
    return Bernoulli() if observation == "bernoulli" else DiscretisedGaussian()
