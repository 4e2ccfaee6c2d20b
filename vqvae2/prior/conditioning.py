"""What a prior knows before its first code: the label and the codes of all coarser levels."""

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae2.autoencoder.blocks import ResidualBlock
from vqvae2.config import LevelGrid


class CoarserCodes(nn.Module):
    """The residual conditioning stack (Razavi et al. 2019, section 3.2).

    Codes of the coarser levels -> a map over the finer grid. From coarse to fine each level's
    embedded codes are added and the sum is doubled in size by learned upsampling. The residual blocks
    stand before the last enlargement: on the grid of the nearest coarser level they cost a quarter.
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
        """Codes (B, h, w) of each coarser level -> (B, H, W, channels) over the finer grid."""
        x: Tensor | float = 0.0
        for name, embedding, enlarge in zip(self.names, self.embeddings, self.enlarge, strict=True):
            x = x + rearrange(embedding(codes[name]), "b h w c -> b c h w")
            if name == self.names[-1]:
                x = self.blocks(x)
            x = enlarge(x)
        return self.norm(rearrange(x, "b c h w -> b h w c"))


class Doubling(nn.Module):
    """Learned upsampling: each position becomes 2x2 positions, (B, C, H, W) -> (B, C, 2 H, 2 W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.spread = nn.Linear(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        spread = self.spread(rearrange(x, "b c h w -> b h w c"))
        return rearrange(spread, "b h w (two_h two_w c) -> b c (h two_h) (w two_w)", two_h=2, two_w=2)


def _enlarge(channels: int, ratio: int) -> nn.Sequential:
    doublings = ratio.bit_length() - 1
    return nn.Sequential(*(Doubling(channels) for _ in range(doublings)))


class Label(nn.Module):
    """An embedding of the class, with one more entry for images whose class is not given."""

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.not_given = num_classes
        self.embedding = nn.Embedding(num_classes + 1, channels)

    def forward(self, labels: Tensor | None, batch: int) -> Tensor:
        """Labels (B,), negative for not given, or None for all not given -> (B, 1, 1, channels)."""
        if labels is None:
            labels = torch.full((batch,), self.not_given, device=self.embedding.weight.device)
        labels = torch.where(labels < 0, self.not_given, labels)
        return rearrange(self.embedding(labels), "b c -> b 1 1 c")
