"""Probabilistic principal component analysis (Tipping and Bishop 1999), fitted in closed form.

x = W z + mean + noise with z ~ N(0, I) and noise ~ N(0, s I), so x ~ N(mean, C) with C = W W^T + s I. With the Q
largest eigenvalues l_i of the covariance and their eigenvectors U, the maximum likelihood solution is (equations 7
and 8)

    s = mean of the other eigenvalues,  W = U (diag(l) - s I)^(1/2)

Pixel values v of V are dequantized, x = (v + u) / V with u uniform in [0, 1), so that the density of x bounds the
probability of v: -log P(v) <= -log p(x) + C H W log V (Theis et al. 2016, arXiv 1511.01844, section 3.1).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2.family.member import Bound, Member, Setting
from vqvae2.family.moments import mean_and_covariance
from vqvae2.images.loading import ImageBatch
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.objective import Reduce

SMALLEST_NOISE = 1e-12


class Fit(NamedTuple):
    """A fitted model of vectors of D numbers with Q latents.

    Attributes:
        mean: (D,).
        components: eigenvectors of the Q largest eigenvalues of the covariance, (D, Q).
        eigenvalues: these eigenvalues, (Q,).
        noise: variance of the noise, a scalar.
    """

    mean: Tensor
    components: Tensor
    eigenvalues: Tensor
    noise: Tensor

    def covariance(self) -> Tensor:
        """C = W W^T + s I, (D, D)."""
        signal = self.components * (self.eigenvalues - self.noise)
        return signal @ self.components.T + self.noise * torch.eye(len(self.mean)).to(self.mean)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log N(x; mean, C) of vectors (B, D) in nats, (B,)."""
        centred = x - self.mean
        projected = centred @ self.components  # (B, Q)
        others = centred.square().sum(1) - projected.square().sum(1)
        distance = (projected.square() / self.eigenvalues).sum(1) + others / self.noise
        dimensions, latents = self.components.shape
        log_determinant = self.eigenvalues.log().sum() + (dimensions - latents) * self.noise.log()
        return -0.5 * (dimensions * math.log(2 * math.pi) + log_determinant + distance)

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z | x] of vectors (B, D), (B, Q)."""
        return (x - self.mean) @ self.components * (self.eigenvalues - self.noise).sqrt() / self.eigenvalues

    def rate(self, x: Tensor) -> Tensor:
        """KL(p(z | x) || p(z)) of vectors (B, D) in nats, (B,); the posterior has the variances s / l_i."""
        variances = self.noise / self.eigenvalues
        return 0.5 * (self.posterior_mean(x).square() + variances - 1 - variances.log()).sum(1)

    def decode(self, z: Tensor) -> Tensor:
        """W z + mean of latents (B, Q), (B, D)."""
        return (z * (self.eigenvalues - self.noise).sqrt()) @ self.components.T + self.mean


def fit(mean: Tensor, covariance: Tensor, num_latents: int) -> Fit:
    """The maximum likelihood solution for a mean (D,) and a covariance (D, D); num_latents < D."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)  # in ascending order
    noise = eigenvalues[:-num_latents].mean().clamp(min=SMALLEST_NOISE)
    return Fit(mean, vectors[:, -num_latents:], eigenvalues[-num_latents:].clamp(min=noise), noise)


class PPCA(Member):
    """Probabilistic PCA of dequantized pixels."""

    closed_form = True
    mean: Tensor
    components: Tensor
    eigenvalues: Tensor
    noise_variance: Tensor

    def __init__(self, setting: Setting):
        super().__init__(setting)
        dimensions = setting.dimensions
        latents = min(setting.config.latent_dim, dimensions - 1)
        self.values = 2 if setting.observation == "bernoulli" else 256
        self.register_buffer("mean", torch.zeros(dimensions, dtype=torch.float64))
        self.register_buffer("components", torch.zeros(dimensions, latents, dtype=torch.float64))
        self.register_buffer("eigenvalues", torch.ones(latents, dtype=torch.float64))
        self.register_buffer("noise_variance", torch.ones((), dtype=torch.float64))

    def fitted(self) -> Fit:
        """The fitted model."""
        return Fit(self.mean, self.components, self.eigenvalues, self.noise_variance)

    def dequantised(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels of uint8 images as numbers in [0, 1), (B, C * H * W)."""
        uniforms = torch.rand(images.shape, dtype=torch.float64, generator=generator).to(images.device)
        return ((self._levels(images) + uniforms) / self.values).flatten(1).to(self.mean.dtype)

    def _levels(self, images: Tensor) -> Tensor:
        return torch.div(images, 256 // self.values, rounding_mode="floor")

    def finish(self, batches: Iterable[ImageBatch], reduce: Reduce) -> None:
        """Fit the model to the mean and the covariance of all training images."""
        centred = (
            self.dequantised(batch.images, keyed_generator(self.setting.seed, "dequantization", int(batch.indices[0])))
            - 0.5
            for batch in batches
        )
        mean, covariance = mean_and_covariance(centred, self.mean, reduce)
        result = fit(mean + 0.5, covariance, self.components.shape[1])
        for name, value in zip(("mean", "components", "eigenvalues", "noise_variance"), result, strict=True):
            getattr(self, name).copy_(value)

    def reconstruct(self, images: Tensor, labels: Tensor) -> Tensor:
        return self._to_images(self.fitted().decode(self.posterior_means(images, labels)))

    def sample(self, num: int, labels: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(num, len(self.eigenvalues), generator=generator).to(self.mean)
        return self._to_images(self.fitted().decode(z))

    def _to_images(self, x: Tensor) -> Tensor:
        """Numbers in [0, 1), (B, C * H * W), to uint8 images: the value whose interval begins half a step below."""
        values = (x * self.values - 0.5) * (255 / (self.values - 1))
        return values.round().clamp(0, 255).to(torch.uint8).view(-1, self.setting.channels, *self.setting.height_width)

    def bound(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Bound:
        """Rate and distortion of the exact posterior; their sum is the exact -log p(x) of the dequantized pixels."""
        x = self.dequantised(images, generator)
        nats = len(self.mean) * math.log(self.values) - self.fitted().log_likelihood(x)
        rate = self.fitted().rate(x)
        return Bound(rate, nats - rate)

    def posterior_means(self, images: Tensor, labels: Tensor) -> Tensor:
        middle = (self._levels(images) + 0.5) / self.values
        return self.fitted().posterior_mean(middle.flatten(1).to(self.mean.dtype))
