"""The autoregressive prior of one level: p(codes | codes of coarser levels, label), in raster order."""

from functools import partial
from operator import call
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqvae2.autoencoder.modules import module_dict, module_list
from vqvae2.config import LevelGrid, PriorConfig
from vqvae2.prior.attention import AttentionState, CausalAttention
from vqvae2.prior.conditioning import CoarserCodes, Label
from vqvae2.prior.gated import GatedLayer, GatedState


class Reach(NamedTuple):
    """Receptive field of a prior.

    Attributes:
        rows: number of rows above that a position depends on; None: all.
        columns: number of columns to either side that a position depends on; None: all.
    """

    rows: int | None
    columns: int | None


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
            GatedLayer(channels, residual, config.kernel_size, dropout, i == 0, i == config.layers - 1, conditioned)
            for i in range(config.layers)
        )
        # attention layers are spaced evenly, the last one after the last gated layer
        after = {config.layers * (i + 1) // config.attention_layers - 1 for i in range(config.attention_layers)}
        self.attention = module_dict(
            {str(i): CausalAttention(channels, config.attention_heads, dropout) for i in sorted(after)}
        )
        self.output = module_list(OutputLayer(channels, residual, dropout) for _ in range(config.output_layers))
        self.norm = nn.LayerNorm(channels)
        self.to_logits = nn.Linear(channels, grid.codebook_size)
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

    def reach(self) -> Reach:
        """The receptive field of a position."""
        if self.attention:
            return Reach(None, None)
        distance = self.config.kernel_size // 2 * self.config.layers
        return Reach(distance, distance)

    def forward(self, codes: Tensor, coarser: dict[str, Tensor] | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of every code given all codes before it in raster order. C is `hidden_channels`.

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
                horizontal = through(self.attention[str(i)], horizontal, embedded)
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


class Cache:
    """Cached activations of a prior for sampling a batch of grids; each position is computed only once.

    For each row, call `begin_row`; then, for each code of the row, call `logits` and `write` with the code that was
    chosen. `logits` and `write` use buffers at fixed addresses and keep the current position in tensors, so that a
    CUDA graph can capture them. `begin_row(0)` starts a new batch of grids with the same conditioning.
    """

    def __init__(self, prior: Prior, batch: int, coarser: dict[str, Tensor] | None, labels: Tensor | None):
        self.prior = prior
        height, width = prior.grid.height, prior.grid.width
        condition = prior.condition(batch, coarser, labels)
        self.condition = None if condition is None else condition.expand(batch, height, -1, -1)
        self.position_embedding = prior.position_embedding()
        device = self.position_embedding.device
        self.gated: list[GatedState] = [layer.start(batch, width) for layer in prior.layers]
        self.attention: dict[str, AttentionState] = {
            i: layer.start(batch, height * width) for i, layer in prior.attention.items()
        }
        # Buffers of the current row: `start` is the initial horizontal stack, `added` the terms that each layer
        # receives from above and from the condition, `left` the input of each layer's kernel to the left of the
        # current position, `codes` the codes chosen so far.
        self.start = torch.empty_like(self.position_embedding[0])
        self.kernels_left = torch.stack([layer.split_kernel()[0] for layer in prior.layers])
        layers, left, added = self.kernels_left.shape
        self.added = self.position_embedding.new_empty(layers, batch, width, added)
        self.left = self.position_embedding.new_empty(layers, batch, left)
        self.sources: list[Tensor] = []  # inputs of the kernels at the current position
        self.codes = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.for_vertical: list[Tensor | float] = [0.0] * len(prior.layers)  # used when the next row begins
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = torch.arange(height * width, device=device)[None]

    def begin_row(self, row: int) -> None:
        """Compute the vertical stack of the previous row, whose codes are now known, and prepare this row's buffers."""
        prior = self.prior
        if row == 0:
            for gated in self.gated:
                gated.rows.zero_()
            for name, attention in self.attention.items():
                prior.attention[name].begin(attention)
        else:
            embedded = prior.embedding(self.codes)
            vertical = self.position_embedding[row - 1].expand_as(embedded)
        for i, (layer, state) in enumerate(zip(prior.layers, self.gated, strict=True)):
            above: Tensor | float = 0.0
            if row > 0:
                vertical, above = layer.row(state, vertical, embedded, self.for_vertical[i])
            condition = None if self.condition is None else self.condition[:, row]
            self.for_vertical[i], for_horizontal = layer.split_condition(condition)
            self.added[i].copy_(above + for_horizontal + cast(Tensor, layer.horizontal_in.bias))
        self.left.zero_()
        width = prior.grid.width
        self.start.copy_(self.position_embedding[row])
        self.column.zero_()
        self.position.fill_(row * width)
        if not self.codes.is_cuda:  # a CUDA graph has a fixed number of positions and masks the later ones
            self.positions = torch.arange((row + 1) * width)[None]

    def logits(self) -> Tensor:
        """Logits (B, K) of the next code of the current row."""
        prior = self.prior
        horizontal = self.start.index_select(0, self.column).expand(len(self.codes), -1)
        # the inputs to the left are known for all layers: one batched matrix product
        from_above = self.added.index_select(2, self.column).squeeze(2)
        added = torch.baddbmm(from_above, self.left, self.kernels_left).unbind()
        seen = self.positions <= self.position if self.attention else None
        self.sources.clear()
        for i, (layer, state) in enumerate(zip(prior.layers, self.gated, strict=True)):
            horizontal, source = layer.step(state, horizontal, added[i])
            self.sources.append(source)
            attention = self.attention.get(str(i))
            if attention is not None and seen is not None:
                horizontal = prior.attention[str(i)].step(attention, self.position, seen, horizontal)
        return prior.logits(horizontal)

    def write(self, codes: Tensor) -> None:
        """Store the codes (B,) that were chosen from the last `logits` and advance to the next position."""
        prior = self.prior
        self.codes.index_copy_(1, self.column, codes[:, None])
        embedded = prior.embedding(codes)
        sources = torch.stack([embedded, *self.sources[1:]])
        self.left.copy_(torch.cat([self.left[:, :, sources.shape[2] :], sources], dim=2))
        for i, state in self.attention.items():
            prior.attention[i].write(state, embedded)
        self.column += 1
        self.position += 1
