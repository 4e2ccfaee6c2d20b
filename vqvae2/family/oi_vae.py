"""The output-interpretable VAE (Ainsworth et al. 2018, arXiv 1802.06765): which latents make which part of an image.

The pixels are in groups, here strips of `group_rows` rows. Each group g has a generator of its own with a first layer
W_g of U rows, whose columns W_gj are sparse as a whole (the group lasso):

    x_g ~ p(x_g | f_g(W_g z)),  log p(W) = -lambda * sum over g and j of |W_gj| + constant

so latent j has no influence on group g once its column is exactly zero. After each update of the optimizer, a proximal
step with the same learning rate r shortens the columns:

    W_gj <- W_gj max(0, 1 - r lambda / |W_gj|)  with  lambda = sparsity * sqrt(U)

The paper updates W by plain gradient steps. Here Adam does, whose steps have a length of up to r sqrt(U) whatever the
scale of the loss: the shrinkage is decoupled from the loss, as weight decay is in AdamW. With a sparsity of 1 no column
survives; with 0 none becomes zero.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae2.family.member import Setting
from vqvae2.family.trunk import OUTPUT_SCALE
from vqvae2.family.vae import VAE
from vqvae2.training.objective import Reduce
from vqvae2.training.schedule import learning_rate

RATE_FACTOR = 0.1  # Adam's learning rate for the generators relative to Muon's for the encoder


class Generators(nn.Module):
    """A generator for each of G groups of pixels: W_g, a hidden layer of U units, and the pixels of the group.

    Attributes:
        first: the sparse layers W_g, (G, U, D).
    """

    def __init__(self, setting: Setting, latent_dim: int):
        super().__init__()
        height, width = setting.height_width
        self.rows = setting.config.group_rows
        self.channels, self.width = setting.channels, width
        groups = height // self.rows
        units, pixels = max(1, setting.config.units // groups), setting.channels * self.rows * width
        self.first = nn.Parameter(torch.randn(groups, units, latent_dim) / math.sqrt(latent_dim))
        self.first_bias = nn.Parameter(torch.zeros(groups, units))
        self.hidden = nn.Parameter(torch.randn(groups, units, units) * math.sqrt(2 / units))
        self.hidden_bias = nn.Parameter(torch.zeros(groups, units))
        self.last = nn.Parameter(torch.randn(groups, pixels, units) * OUTPUT_SCALE * math.sqrt(2 / units))
        self.last_bias = nn.Parameter(torch.zeros(groups, pixels))

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (B, D) -> parameters of the pixel distribution (B, C, H, W)."""
        x = F.relu(torch.einsum("bd, gud -> bgu", latents, self.first) + self.first_bias)  # (B, G, U)
        x = F.relu(torch.einsum("bgu, gvu -> bgv", x, self.hidden) + self.hidden_bias)  # (B, G, U)
        x = torch.einsum("bgu, gpu -> bgp", x, self.last) + self.last_bias  # (B, G, C * rows * W)
        return rearrange(x, "b g (c r w) -> b c (g r) w", c=self.channels, w=self.width)

    def norms(self) -> Tensor:
        """Norms of the columns of the first layers, (G, D); zero where a latent has no influence on a group."""
        return self.first.norm(dim=1)

    @torch.no_grad()
    def shrink(self, threshold: Tensor) -> None:
        """The proximal step: shorten each column by `threshold` (scalar), and no further than to zero."""
        factors = (1 - threshold / self.norms().clamp(min=1e-12)).clamp(min=0)  # (G, D)
        self.first.mul_(factors[:, None])


class OIVAE(VAE):
    """A VAE whose decoder has sparse connections from the latents to groups of pixels."""

    decoder: Generators

    def build_decoder(self) -> Generators:
        return Generators(self.setting, self.latent_dim)

    def rate_factors(self) -> dict[nn.Parameter, float]:
        return dict.fromkeys(self.decoder.parameters(), self._rate_factor)

    @property
    def _rate_factor(self) -> float:
        return RATE_FACTOR if self.setting.train.optimizer == "muon" else 1.0

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        units = self.decoder.first.shape[1]
        rate = self._rate_factor * learning_rate(self.setting.train, step)
        self.decoder.shrink(applied * rate * self.setting.config.sparsity * math.sqrt(units))

    def group_weights(self) -> Tensor:
        return self.decoder.norms()
