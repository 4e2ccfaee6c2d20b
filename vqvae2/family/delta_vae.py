"""The delta-VAE (Razavi et al. 2019, arXiv 1901.03416): a VAE whose rate cannot fall below delta.

The latents are a sequence of n vectors. The prior is an AR(1) process with variance 1 (section 2.2),

    z_1 ~ N(0, 1),  z_t = a z_(t-1) + s e_t  with  s^2 = 1 - a^2

in each of d dimensions, the posterior is a diagonal Gaussian, which cannot have that correlation. The KL divergence is
smallest at mean 0 and at the variances s^2 for t = 1 and t = n, and s^2 / (1 + a^2) between. There it is

    delta = d / 2 ((n - 2) log(1 + a^2) - log(1 - a^2))

so the rate of every image is at least delta, whatever the posterior's variances. The paper also trains a second prior
for sampling; here the samples come from the AR(1) prior.
"""

import math

import torch
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.family.member import Setting
from vqvae2.family.vae import VAE, Gaussian

BISECTIONS = 60  # to the precision of float64
LARGEST_CORRELATION = 1 - 1e-12


def smallest_rate(correlation: float, length: int, dimensions: int) -> float:
    """Delta in nats for a prior of `length` vectors of `dimensions` numbers, length 2 or more."""
    square = correlation**2
    return dimensions / 2 * ((length - 2) * math.log1p(square) - math.log1p(-square))


def correlation_for(delta: float, length: int, dimensions: int) -> float:
    """The correlation a in [0, 1) of the prior whose smallest rate is `delta` nats, or slightly more.

    Raises:
        UserError: `delta` needs a correlation that floating point numbers cannot tell from 1.
    """
    low, high = 0.0, LARGEST_CORRELATION
    if smallest_rate(high, length, dimensions) < delta:
        raise UserError(f"members.delta: {delta} is not valid: use a smaller one, or more or longer latent vectors")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if smallest_rate(middle, length, dimensions) < delta else (low, middle)
    return high


def conditional_prior(z: Tensor, correlation: float) -> Gaussian:
    """p(z_t | z_(t-1)) for sequences z (B, n, d): means and logarithms of the deviations, (B, n * d) each."""
    mean = correlation * torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
    log_deviation = torch.full_like(z, 0.5 * math.log1p(-(correlation**2)))
    log_deviation[:, 0] = 0.0
    return Gaussian(mean.flatten(1), log_deviation.flatten(1))


class DeltaVAE(VAE):
    """The VAE with an AR(1) prior over `sequence_length` vectors of `sequence_dim` numbers.

    Attributes:
        correlation: a, so that the smallest rate is the `delta` of the configuration.
    """

    def __init__(self, setting: Setting):
        config = setting.config
        super().__init__(setting, config.sequence_length * config.sequence_dim)
        self.correlation = correlation_for(config.delta, config.sequence_length, config.sequence_dim)

    def rate(self, posterior: Gaussian, labels: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)): the KL at the posterior's mean of z_(t-1), and the term of its variance."""
        conditional = conditional_prior(self._sequence(posterior.mean), self.correlation)
        variance = self._sequence((2 * posterior.log_deviation).exp())[:, :-1].sum(dim=(1, 2))  # of all z_(t-1)
        square = self.correlation**2
        return posterior.kl(conditional) + 0.5 * square / (1 - square) * variance

    def log_prior(self, z: Tensor, labels: Tensor) -> Tensor:
        return conditional_prior(self._sequence(z), self.correlation).log_density(z)

    def draw_prior(self, noise: Tensor, labels: Tensor) -> Tensor:
        drawn = list(self._sequence(noise).unbind(1))
        for t in range(1, len(drawn)):
            drawn[t] = self.correlation * drawn[t - 1] + math.sqrt(1 - self.correlation**2) * drawn[t]
        return torch.stack(drawn, dim=1).flatten(1)

    def _sequence(self, z: Tensor) -> Tensor:
        """Latents (B, n * d) as a sequence (B, n, d)."""
        return z.unflatten(1, (self.setting.config.sequence_length, -1))
