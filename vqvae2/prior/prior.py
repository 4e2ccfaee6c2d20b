"""The autoregressive prior of one level: p(codes | codes of coarser levels, label)."""

from functools import partial
from operator import call
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqvae2.autoencoder.modules import module_dict, module_list
from vqvae2.config import LevelGrid, PriorConfig
from vqvae2.prior.attention import CausalAttention
from vqvae2.prior.conditioning import CoarserCodes, Label
from vqvae2.prior.gated import GatedLayer


class Reach(NamedTuple):
    """Receptive field of a prior.

    Attributes:
        rows: number of rows above that a position depends on; None: all.
        left: number of columns to the left that a position depends on; None: all.
        right: number of columns to the right in the row above that a position depends on; None: all.
    """

    rows: int | None
    left: int | None
    right: int | None


def columns_to_the_right(config: PriorConfig) -> list[int]:
    """Columns to the right of a position in the vertical kernel of each layer: the first layers use up the limit."""
    half = config.kernel_size // 2
    if config.right_reach is None:
        return [half] * config.layers
    return [min(half, max(0, config.right_reach - half * i)) for i in range(config.layers)]


def earlier_positions(grid: LevelGrid, stride: int) -> Tensor:
    """Which positions belong to earlier waves and not to a row below, bool (N, N) with N = H * W, for each position."""
    positions = torch.arange(grid.height * grid.width)
    rows, columns = positions // grid.width, positions % grid.width
    waves = columns + rows * stride
    return (waves < waves[:, None]) & (rows <= rows[:, None])


class Prior(nn.Module):
    """Gated residual layers in a vertical and a horizontal stack, with causal attention after some of the layers."""

    def __init__(self, config: PriorConfig, grid: LevelGrid, coarser: list[LevelGrid], num_classes: int):
        """Build a prior.

        Args:
            config: sizes of the model.
            grid: grid of codes of the prior's level.
            coarser: grids of the levels that the prior is conditioned on, coarsest first.
            num_classes: number of classes; 0: no conditioning on labels.
        """
        super().__init__()
        self.config = config
        self.grid = grid
        self.coarser = coarser
        self.num_classes = num_classes
        channels, residual, dropout = config.hidden_channels, config.residual_channels, config.dropout
        conditioned = bool(coarser) or num_classes > 0
        self.embedding = nn.Embedding(grid.codebook_size, channels)
        self.row_position = nn.Parameter(torch.empty(grid.height, 1, channels))
        self.column_position = nn.Parameter(torch.empty(1, grid.width, channels))
        self.label = Label(num_classes, channels) if num_classes else None
        self.coarser_codes = (
            CoarserCodes(coarser, grid, channels, residual, config.conditioning_layers, dropout) if coarser else None
        )
        self.layers = module_list(
            GatedLayer(
                channels, residual, config.kernel_size, right, dropout, i == 0, i == config.layers - 1, conditioned
            )
            for i, right in enumerate(columns_to_the_right(config))
        )
        # attention layers are spaced evenly, the last one after the last gated layer
        after = {config.layers * (i + 1) // config.attention_layers - 1 for i in range(config.attention_layers)}
        self.attention = module_dict(
            {str(i): CausalAttention(channels, config.attention_heads, dropout) for i in sorted(after)}
        )
        self.output = module_list(OutputLayer(channels, residual, dropout) for _ in range(config.output_layers))
        self.norm = nn.LayerNorm(channels)
        self.to_logits = nn.Linear(channels, grid.codebook_size)
        # which positions attention sees; None: all earlier ones in raster order
        seen = None if not self.attention or config.right_reach is None else earlier_positions(grid, self.stride())
        self.register_buffer("seen", seen, persistent=False)
        self._initialise()
        self.to(memory_format=torch.channels_last)

    def _initialise(self) -> None:
        nn.init.normal_(self.row_position, std=0.1)
        nn.init.normal_(self.column_position, std=0.1)
        # Initially the vertical stack is added to the horizontal one unchanged, as if both had one common kernel.
        for layer in self.layers:
            nn.init.eye_(layer.downwards.weight)
            nn.init.zeros_(layer.downwards.bias)
        # Scale residual branches by 1 / sqrt(layers), so that the scale of their sum does not depend on the depth.
        branches = [x for layer in self.layers for x in (layer.vertical_out, layer.horizontal_out) if x is not None]
        for branch in [*branches, *(x.out for x in self.attention.values()), *(x.out for x in self.output)]:
            with torch.no_grad():
                branch.weight.mul_(len(self.layers) ** -0.5)

    @torch.no_grad()
    def start_from(self, codebooks: dict[str, Tensor]) -> None:
        """Initialize the weights of each code from its code vector, so that similar codes start with similar weights.

        Args:
            codebooks: code vectors (K, D) of this level and of all coarser ones, by name.
        """
        layers = [(self.grid.name, self.embedding), (self.grid.name, self.to_logits)]
        if self.coarser_codes is not None:
            layers += zip(self.coarser_codes.names, self.coarser_codes.embeddings, strict=True)
        for name, layer in layers:
            weight = cast(nn.Parameter, layer.weight)
            vectors = codebooks[name] - codebooks[name].mean(0)
            # A random projection keeps the ratios of distances. The factor keeps the scale of the weights.
            projected = vectors @ torch.randn(vectors.shape[1], weight.shape[1])  # (K, channels)
            weight.copy_(projected * (weight.std() / projected.std().clamp(min=1e-12)))

    def matrices(self) -> dict[nn.Parameter, int]:
        """Weights of all linear and convolution layers but the last one, whose rows are the codes' own.

        Returns:
            The number of matrices that the outputs of each are divided into: 2 for values and gates, and for keys and
            values of attention, else 1.
        """
        layers = [x for x in self.modules() if isinstance(x, nn.Linear | nn.Conv2d) and x is not self.to_logits]
        weights = [cast(nn.Parameter, x.weight) for x in layers]
        gated = [x for layer in self.layers for x in (layer.vertical_in, layer.downwards, layer.horizontal_in)]
        halves = {id(x.weight) for x in [*gated, *(x.key_value for x in self.attention.values())]}
        return {weight: 2 if id(weight) in halves else 1 for weight in weights}

    def reach(self) -> Reach:
        """The receptive field of a position."""
        if self.attention:
            return Reach(None, None, self.config.right_reach)
        distance = self.config.kernel_size // 2 * self.config.layers
        return Reach(distance, distance, sum(layer.right for layer in self.layers))

    def stride(self) -> int:
        """Columns by which the sampling of a row has to be ahead of the row below, S.

        Position (i, j) sees codes of the row k above only up to column j + k * S - 1.
        """
        right = sum(layer.right for layer in self.layers)
        if self.attention:
            beyond = self.grid.width - 1  # all columns
            limit = beyond if self.config.right_reach is None else self.config.right_reach
            right = max(right, min(limit, beyond))
        return right + 1

    def forward(self, codes: Tensor, coarser: dict[str, Tensor] | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of every code given the codes before it. C is `hidden_channels`.

        Args:
            codes: (B, H, W) int64.
            coarser: codes (B, h, w) of each coarser level by name; None for the coarsest level.
            labels: (B,) int64, negative for images without a label; None: no labels.

        Returns:
            Logits (B, K, H, W).
        """
        embedded = self.embedding(codes)  # (B, H, W, C)
        condition = self.condition(len(codes), coarser, labels)  # (B, H, W, C), (B, 1, 1, C) or None
        vertical = horizontal = self.position_embedding().expand_as(embedded)  # (B, H, W, C)
        through = partial(checkpoint, use_reentrant=False) if self.config.activation_checkpointing else call
        for i, layer in enumerate(self.layers):
            vertical, horizontal = through(layer, vertical, horizontal, embedded, condition)
            if str(i) in self.attention:
                horizontal = through(self.attention[str(i)], horizontal, embedded, self.seen)
        return rearrange(self.logits(horizontal), "b h w k -> b k h w")  # (B, K, H, W)

    def position_embedding(self) -> Tensor:
        """Initial value of both stacks: a learned vector per row plus a learned vector per column, (H, W, channels)."""
        return self.row_position + self.column_position

    def condition(self, batch: int, coarser: dict[str, Tensor] | None, labels: Tensor | None) -> Tensor | None:
        """Sum of the embeddings of label and coarser codes: (B, H, W, channels), (B, 1, 1, channels) or None."""
        known = [] if self.label is None else [self.label(labels, batch)]
        if self.coarser_codes is not None:
            known.append(self.coarser_codes(coarser))
        return sum(known) if known else None

    def logits(self, horizontal: Tensor) -> Tensor:
        """Map the horizontal stack (..., channels) to logits (..., K)."""
        for layer in self.output:
            horizontal = layer(horizontal)
        return self.to_logits(self.norm(horizontal))


class OutputLayer(nn.Module):
    """Residual layer of 1x1 convolutions, x + out(relu(in(norm(x)))), on (..., channels)."""

    def __init__(self, channels: int, residual_channels: int, dropout: float):
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, residual_channels), nn.ReLU())
        self.out = nn.Linear(residual_channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.out(self.branch(x)))  # (..., channels)
