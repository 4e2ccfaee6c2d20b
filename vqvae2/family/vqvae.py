"""VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) and VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446).

Both are the project's own autoencoder and priors. The loss of the autoencoder (van den Oord et al., equation 3), with
code vectors e and features f, is

    -log p(x | e) + |sg[f] - e|^2 + beta |f - sg[e]|^2

where the second term is an update by moving averages, and sg stops the gradient. The bound on -log p(x) has no
posterior to draw from, since each image has one code at each position:

    -log p(x) <= -log p(x | codes of x) - log p(codes of x) = distortion + rate

The papers train the priors after the autoencoder. Here they are trained in the same steps, on the codes of the moment,
so that all models of the family take the same steps. The codes pass no gradient, so the autoencoder does not change.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.autoencoder import Autoencoder, Losses, Reconstruction
from vqvae2.autoencoder.modules import module_dict
from vqvae2.autoencoder.objective import AutoencoderObjective
from vqvae2.config import AutoencoderConfig, LevelConfig, PriorConfig, level_grids
from vqvae2.family.member import Bound, Member, Setting
from vqvae2.family.observation import DiscretisedGaussian
from vqvae2.images.convert import to_uint8
from vqvae2.images.loading import ImageBatch
from vqvae2.prior.likelihood import code_nll
from vqvae2.prior.prior import Prior
from vqvae2.prior.sampling import Controls, sample_levels
from vqvae2.training.objective import Loss, Reduce

SMALLEST_PROBABILITY = 1e-5  # of a black or white pixel


class Probabilities(nn.Module):
    """Logits l -> 2 sigmoid(l) - 1, the mean of a Bernoulli pixel in [-1, 1], in float32."""

    def forward(self, logits: Tensor) -> Tensor:
        return (logits.float() / 2).tanh()


def bernoulli_nats(images: Tensor, means: Tensor) -> Tensor:
    """-log p(x) of each image in nats, (B,), for black and white pixels with `means` (B, C, H, W) in [-1, 1]."""
    # scaled instead of clamped, so that a pixel that is almost certainly wrong has a gradient
    white = 0.5 + (0.5 - SMALLEST_PROBABILITY) * means.float()
    return -torch.where(images > 127, white, 1 - white).log().sum(dim=(1, 2, 3))


class LikelihoodAutoencoder(Autoencoder):
    """The autoencoder with the likelihood of the pixels as its reconstruction loss, in nats per pixel value."""

    def nats(self, images: Tensor, means: Tensor) -> Tensor:
        """-log p(x | codes) of uint8 images (B, C, H, W) in nats per image, (B,), given the decoder's output."""
        raise NotImplementedError

    def losses(self, images: Tensor, reconstruction: Reconstruction) -> Losses:
        """As in Autoencoder, with another reconstruction term."""
        losses = super().losses(images, reconstruction)
        term = self.nats(images, reconstruction.images).mean() / images[0].numel()
        return losses._replace(total=losses.total - losses.reconstruction + term, reconstruction=term)


class BlackAndWhiteAutoencoder(LikelihoodAutoencoder):
    """The autoencoder for binarized images: its outputs are means of Bernoulli pixels."""

    def __init__(self, config: AutoencoderConfig, channels: int):
        super().__init__(config, channels)
        cast(nn.Sequential, self.decoders[-1]).append(Probabilities())

    def nats(self, images: Tensor, means: Tensor) -> Tensor:
        return bernoulli_nats(images, means)


class GaussianAutoencoder(LikelihoodAutoencoder):
    """The autoencoder for all other images: its outputs are means of Gaussians with one learned deviation."""

    def __init__(self, config: AutoencoderConfig, channels: int):
        super().__init__(config, channels)
        self.pixels = DiscretisedGaussian()

    def nats(self, images: Tensor, means: Tensor) -> Tensor:
        return self.pixels.nats(means, images)


class VQVAE(Member):
    """The project's autoencoder with codebooks, and a prior over the codes of each level.

    Attributes:
        strides: image pixels per code along a side of each level, by name, coarsest first.
    """

    strides = {"top": 4}  # noqa: RUF012

    def __init__(self, setting: Setting):
        super().__init__(setting)
        c = setting.config
        levels = [LevelConfig(name, stride, c.codebook_size, c.code_dim) for name, stride in self.strides.items()]
        sizes = (c.hidden_channels, c.residual_channels, c.residual_layers)
        config = AutoencoderConfig(levels, *sizes, activation="relu")  # as in the trunk of the others
        kind = BlackAndWhiteAutoencoder if setting.observation == "bernoulli" else GaussianAutoencoder
        self.autoencoder: LikelihoodAutoencoder = kind(config, setting.channels)
        self.grids = level_grids(levels, setting.height_width)
        prior = PriorConfig(
            hidden_channels=c.prior_channels, residual_channels=c.prior_channels, layers=c.prior_layers, dropout=0.0
        )
        self.priors = module_dict(
            {grid.name: Prior(prior, grid, self.grids[:i], num_classes=0) for i, grid in enumerate(self.grids)}
        )
        self.objective = AutoencoderObjective(
            self.autoencoder, setting.train.batch_size, setting.train.total_steps, setting.seed
        )
        self.start_step = self.objective.start_step

    def forward(self, batch: ImageBatch, step: int) -> Loss:
        loss = self.objective.loss(self.autoencoder, batch, step)
        with torch.no_grad():
            codes = self.autoencoder.encode(batch.images)
        rate = self._rate(codes, batch.labels).mean()
        # Before the codebooks are initialized, the codes carry no information.
        weight = float(step >= self.objective.start_step) / math.prod(self.setting.height_width)
        return Loss(loss.total + weight * rate, {**loss.metrics, "rate": rate.detach()})

    def _rate(self, codes: dict[str, Tensor], labels: Tensor) -> Tensor:
        """-log p(codes) in nats per image, (B,)."""
        levels = [code_nll(prior, prior, codes, labels).sum(dim=(1, 2)) for prior in self.priors.values()]
        return cast(Tensor, sum(levels))

    def start(self, batches: Iterator[list[ImageBatch]], reduce: Reduce) -> None:
        self.objective.start(batches, reduce)

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        self.objective.end_step(step, applied, reduce)

    def state(self) -> dict[str, Tensor]:
        return self.objective.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.objective.load_state(state)
        self.start_step = self.objective.start_step

    def rate_factors(self) -> dict[nn.Parameter, float]:
        return self.autoencoder.rate_factors()

    def reconstruct(self, images: Tensor, labels: Tensor) -> Tensor:
        return to_uint8(self.autoencoder(images).images)

    def sample(self, num: int, labels: Tensor, generator: torch.Generator) -> Tensor:
        uniforms = {
            grid.name: torch.rand(num, grid.height * grid.width, dtype=torch.float64, generator=generator)
            for grid in self.grids
        }
        on_device = {name: x.to(labels.device) for name, x in uniforms.items()}
        controls = {grid.name: Controls() for grid in self.grids}
        return self.autoencoder.decode(sample_levels(dict(self.priors.items()), on_device, None, controls, {}))

    def bound(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Bound:
        rate = self._rate(self.autoencoder.encode(images), labels)
        return Bound(rate, self.autoencoder.nats(images, self.autoencoder(images).images))

    def exchange_loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        means = self.autoencoder(images).images
        return self.autoencoder.nats(images, means.roll(1, 0)) - self.autoencoder.nats(images, means)

    def codes(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self.autoencoder.encode(images)

    def codebook_sizes(self) -> dict[str, int]:
        return {grid.name: grid.codebook_size for grid in self.grids}


class VQVAE2(VQVAE):
    """VQ-VAE-2: two levels, and a prior of the bottom codes given the top codes."""

    strides = {"top": 4, "bottom": 2}  # noqa: RUF012
