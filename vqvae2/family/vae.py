"""The variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114), base class of the models with KL rates.

It maximizes the evidence lower bound, here as a loss in nats per image:

    -log p(x) <= E_q(z|x)[-log p(x|z)] + KL(q(z|x) || p(z)) = distortion + rate

with q(z|x) = N(mean(x), deviation(x)^2) and, by reparametrization, z = mean + deviation * noise, so that the gradient
passes through z. The importance-weighted bound (Burda et al. 2016, arXiv 1509.00519, equation 8) is tighter:

    -log p(x) <= -E[log 1/S sum_s p(x|z_s) p(z_s) / q(z_s|x)],  z_s ~ q(z|x)
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vqvae2.family.member import Bound, Member, Setting
from vqvae2.family.observation import pixels_of
from vqvae2.family.trunk import Trunk
from vqvae2.images.loading import ImageBatch
from vqvae2.training.objective import Loss

SAMPLES_AT_A_TIME = 1024  # latents that are decoded at a time by the importance-weighted bound
LARGEST_LOG_DEVIATION = 5.0  # beyond it a posterior is no longer useful, and exp would overflow early in training


class Gaussian(NamedTuple):
    """Gaussians with diagonal covariance, (B, D) each: means and logarithms of the standard deviations."""

    mean: Tensor
    log_deviation: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """mean + deviation * noise, for standard normal noise (B, D)."""
        return self.mean + self.log_deviation.exp() * noise

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z; mean, deviation^2), summed over the dimensions, (B,)."""
        standard = (z - self.mean) * (-self.log_deviation).exp()
        return -(0.5 * (standard.square() + math.log(2 * math.pi)) + self.log_deviation).sum(1)

    def kl(self, prior: "Gaussian") -> Tensor:
        """KL(self || prior) in nats, (B,): sum of log s_p - log s + (s^2 + (m - m_p)^2) / (2 s_p^2) - 1/2."""
        ratio = (2 * (self.log_deviation - prior.log_deviation)).exp()
        distance = ((self.mean - prior.mean) * (-prior.log_deviation).exp()).square()
        return (prior.log_deviation - self.log_deviation + 0.5 * (ratio + distance - 1)).sum(1)


def standard_gaussian(like: Tensor) -> Gaussian:
    """N(0, I) with the shape of `like` (B, D)."""
    return Gaussian(torch.zeros_like(like), torch.zeros_like(like))


class Decoder(Protocol):
    """What decodes latents: a trunk, or the generators of the oi-VAE."""

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (B, D) -> parameters of the pixel distribution (B, C, H, W)."""


class VAE(Member):
    """The VAE with a diagonal Gaussian posterior and a standard normal prior.

    Subclasses replace single parts: `prior`, `rate` and `log_prior`, or `distortion` and `decode`. The loss is always
    the mean over images of distortion + rate_weight * rate.

    Attributes:
        latent_dim: number of dimensions of z, D.
        rate_weight: weight of the rate in the loss.
    """

    rate_weight = 1.0

    def __init__(self, setting: Setting, latent_dim: int | None = None):
        """Build the model; `latent_dim` is that of the configuration if it is None."""
        super().__init__(setting)
        self.latent_dim = latent_dim or setting.config.latent_dim
        self.encoder = Trunk(setting, outputs=2 * self.latent_dim, conditional=self.conditional)
        self.decoder: Decoder = self.build_decoder()
        self.pixels = pixels_of(setting.observation)

    def build_decoder(self) -> Decoder:
        """A new decoder."""
        return Trunk(self.setting, inputs=self.latent_dim, conditional=self.conditional)

    def posterior(self, images: Tensor, labels: Tensor) -> Gaussian:
        """q(z|x), in float32."""
        mean, log_deviation = self.encoder.encode(images, labels).float().chunk(2, dim=1)  # (B, D) each
        return Gaussian(mean, log_deviation.clamp(max=LARGEST_LOG_DEVIATION))

    def prior(self, like: Tensor, labels: Tensor) -> Gaussian:
        """p(z), with the shape of `like` (B, D)."""
        return standard_gaussian(like)

    def rate(self, posterior: Gaussian, labels: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)) in nats per image, (B,)."""
        return posterior.kl(self.prior(posterior.mean, labels))

    def log_prior(self, z: Tensor, labels: Tensor) -> Tensor:
        """log p(z) of latents (B, D) in nats, (B,)."""
        return self.prior(z, labels).log_density(z)

    def draw_prior(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Latents (B, D) from p(z), from standard normal noise (B, D)."""
        return self.prior(noise, labels).draw(noise)

    def distortion(self, images: Tensor, z: Tensor, labels: Tensor) -> Tensor:
        """-log p(x|z) of uint8 images in nats per image, (B,)."""
        return self.pixels.nats(self.decoder.decode(z, labels), images)

    def decode(self, z: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Images of latents (B, D), uint8 (B, C, H, W): means of p(x|z); `generator` is for models that sample."""
        return self.pixels.mean(self.decoder.decode(z, labels))

    def forward(self, batch: ImageBatch, step: int) -> Loss:
        posterior = self.posterior(batch.images, batch.labels)
        z = posterior.draw(self.noise("posterior", batch, step, self.latent_dim))
        distortion = self.distortion(batch.images, z, batch.labels).mean()
        rate = self.rate(posterior, batch.labels).mean()
        metrics = {"distortion": distortion.detach(), "rate": rate.detach()}
        return Loss(distortion + self.rate_weight * rate, metrics)

    def reconstruct(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.decode(self.posterior(images, labels).mean, labels, torch.Generator().manual_seed(0))

    def sample(self, num: int, labels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num, self.latent_dim, generator=generator).to(labels.device)
        return self.decode(self.draw_prior(noise, labels), labels, generator)

    def bound(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Bound:
        posterior = self.posterior(images, labels)
        z = posterior.draw(_noise_like(posterior.mean, generator))
        return Bound(self.rate(posterior, labels), self.distortion(images, z, labels))

    def nll(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        return self.importance_weighted(images, labels, generator, self.setting.config.likelihood_samples)

    def importance_weighted(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, num_samples: int
    ) -> Tensor:
        """The importance-weighted bound on -log p(x) with `num_samples` samples, in nats, (B,)."""
        posterior = self.posterior(images, labels)
        total = posterior.mean.new_full((len(images),), -torch.inf)  # log of the sum of the weights
        at_a_time = max(1, SAMPLES_AT_A_TIME // len(images))
        for first in range(0, num_samples, at_a_time):
            count = min(at_a_time, num_samples - first)
            repeated = Gaussian(*(x.repeat(count, 1) for x in posterior))
            x, y = images.repeat(count, 1, 1, 1), labels.repeat(count)
            z = repeated.draw(_noise_like(repeated.mean, generator))
            log_weights = self.log_prior(z, y) - repeated.log_density(z) - self.distortion(x, z, y)
            total = torch.logaddexp(total, log_weights.view(count, -1).logsumexp(0))
        return math.log(num_samples) - total

    def exchange_loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        posterior = self.posterior(images, labels)
        z = posterior.draw(_noise_like(posterior.mean, generator))
        return self.distortion(images, z.roll(1, 0), labels) - self.distortion(images, z, labels)

    def posterior_means(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.posterior(images, labels).mean


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers with the shape and device of `x`, from a CPU generator."""
    return torch.randn(x.shape, generator=generator).to(x.device)
