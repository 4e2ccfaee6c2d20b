"""Conditioning of a prior on the label and on the codes of all coarser levels."""

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae2.autoencoder.blocks import ResidualBlock
from vqvae2.config import LevelGrid


class CoarserCodes(nn.Module):
    """The residual conditioning stack (Razavi et al. 2019, section 3.2).

    Maps the codes of the coarser levels to a tensor on the finer grid. From coarse to fine, the embedded codes of
    each level are added and the sum is upsampled by learned layers to the next grid. The residual blocks run before
    the last upsampling, on the grid of the nearest coarser level, where they cost a quarter.
    """

    def __init__(
        self,
        coarser: list[LevelGrid],
        finer: LevelGrid,
        channels: int,
        residual_channels: int,
        layers: int,
        dropout: float,
    ):
        super().__init__()
        self.names = [grid.name for grid in coarser]
        self.embeddings = nn.ModuleList(nn.Embedding(grid.codebook_size, channels) for grid in coarser)
        targets = [*coarser[1:], finer]
        self.enlarge = nn.ModuleList(
            _enlarge(channels, target.height // grid.height) for grid, target in zip(coarser, targets, strict=True)
        )
        blocks = [nn.Sequential(ResidualBlock(channels, residual_channels), nn.Dropout(dropout)) for _ in range(layers)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(channels)

    def forward(self, codes: dict[str, Tensor]) -> Tensor:
        """Codes (B, h, w) of each coarser level -> (B, H, W, C) on the finer grid. C is `channels`."""
        x: Tensor | float = 0.0
        for name, embedding, enlarge in zip(self.names, self.embeddings, self.enlarge, strict=True):
            x = x + rearrange(embedding(codes[name]), "b h w c -> b c h w")  # (B, C, h, w)
            if name == self.names[-1]:
                x = self.blocks(x)
            x = enlarge(x)  # (B, C, h, w) of the next finer grid; finally (B, C, H, W)
        return self.norm(rearrange(x, "b c h w -> b h w c"))  # (B, H, W, C)


class Doubling(nn.Module):
    """Learned upsampling by 2: a linear layer maps each position to 2x2 positions, (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.spread = nn.Linear(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        spread = self.spread(rearrange(x, "b c h w -> b h w c"))  # (B, H, W, 4C)
        # (B, C, 2H, 2W)
        return rearrange(spread, "b h w (two_h two_w c) -> b c (h two_h) (w two_w)", two_h=2, two_w=2)


def _enlarge(channels: int, ratio: int) -> nn.Sequential:
    doublings = ratio.bit_length() - 1
    return nn.Sequential(*(Doubling(channels) for _ in range(doublings)))


class Label(nn.Module):
    """Embedding of the label, with an additional entry for images without a label."""

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.not_given = num_classes
        self.embedding = nn.Embedding(num_classes + 1, channels)

    def forward(self, labels: Tensor | None, batch: int) -> Tensor:
        """Embed labels (B,), negative for images without a label; None: no labels. Returns (B, 1, 1, channels)."""
        if labels is None:
            labels = torch.full((batch,), self.not_given, device=self.embedding.weight.device)  # (B,)
        labels = torch.where(labels < 0, self.not_given, labels)
        return rearrange(self.embedding(labels), "b c -> b 1 1 c")  # (B, 1, 1, channels)
