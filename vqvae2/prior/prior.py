"""The prior of one level: p(codes | coarser levels' codes, label), one code after another in raster order."""

from functools import partial
from operator import call
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqvae2.config import LevelGrid, PriorConfig
from vqvae2.prior.attention import AttentionState, CausalAttention
from vqvae2.prior.conditioning import CoarserCodes, Label
from vqvae2.prior.gated import GatedLayer, GatedState


class Reach(NamedTuple):
    """How far back a prior sees: rows up, and columns to either side; None: everything before."""

    rows: int | None
    columns: int | None


class Prior(nn.Module):
    """Gated causal convolutions in two stacks, with causal attention after some of the layers."""

    def __init__(self, config: PriorConfig, grid: LevelGrid, coarser: list[LevelGrid], num_classes: int):
        """The prior of the level `grid`, given the codes of the levels `coarser` (coarsest first)."""
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
        self.layers = nn.ModuleList(
            GatedLayer(channels, residual, config.kernel_size, dropout, i == 0, i == config.layers - 1, conditioned)
            for i in range(config.layers)
        )
        # spread evenly, the last one after the last layer
        after = {config.layers * (i + 1) // config.attention_layers - 1 for i in range(config.attention_layers)}
        self.attention = nn.ModuleDict(
            {str(i): CausalAttention(channels, config.attention_heads, dropout) for i in sorted(after)}
        )
        self.output = nn.ModuleList(OutputLayer(channels, residual, dropout) for _ in range(config.output_layers))
        self.norm = nn.LayerNorm(channels)
        self.to_logits = nn.Linear(channels, grid.codebook_size)
        self._initialise()
        self.to(memory_format=torch.channels_last)

    def _initialise(self) -> None:
        nn.init.normal_(self.row_position, std=0.1)
        nn.init.normal_(self.column_position, std=0.1)
        # The horizontal stack begins with what the vertical one says, as if they were one kernel.
        for layer in self.layers:
            nn.init.eye_(layer.downwards.weight)
            nn.init.zeros_(layer.downwards.bias)
        # What a residual branch adds shrinks with their number, so that the sum keeps its size at any depth.
        branches = [x for layer in self.layers for x in (layer.vertical_out, layer.horizontal_out) if x is not None]
        for branch in [*branches, *(x.out for x in self.attention.values()), *(x.out for x in self.output)]:
            with torch.no_grad():
                branch.weight.mul_(len(self.layers) ** -0.5)

    def reach(self) -> Reach:
        """How far back the code at a position is seen from it."""
        if self.attention:
            return Reach(None, None)
        distance = self.config.kernel_size // 2 * self.config.layers
        return Reach(distance, distance)

    def forward(self, codes: Tensor, coarser: dict[str, Tensor] | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of every code given those before it.

        Args:
            codes: (B, H, W) int64.
            coarser: codes of each coarser level by name; None for the coarsest level.
            labels: (B,) int64, negative for not given; None: not given.

        Returns:
            (B, K, H, W).
        """
        embedded = self.embedding(codes)
        condition = self.condition(len(codes), coarser, labels)
        vertical = horizontal = self.position_embedding().expand_as(embedded)
        through = partial(checkpoint, use_reentrant=False) if self.config.activation_checkpointing else call
        for i, layer in enumerate(self.layers):
            vertical, horizontal = through(layer, vertical, horizontal, embedded, condition)
            if str(i) in self.attention:
                horizontal = through(self.attention[str(i)], horizontal, embedded)
        return rearrange(self.logits(horizontal), "b h w k -> b k h w")

    def position_embedding(self) -> Tensor:
        """What both stacks start from: a learned vector for each row plus one for each column, (H, W, channels)."""
        return self.row_position + self.column_position

    def condition(self, batch: int, coarser: dict[str, Tensor] | None, labels: Tensor | None) -> Tensor | None:
        """What is known before the first code: (B, H, W, channels), (B, 1, 1, channels) or None."""
        known = [] if self.label is None else [self.label(labels, batch)]
        if self.coarser_codes is not None:
            known.append(self.coarser_codes(coarser))
        return sum(known) if known else None

    def logits(self, horizontal: Tensor) -> Tensor:
        """The horizontal stack (..., channels) -> logits (..., K)."""
        for layer in self.output:
            horizontal = layer(horizontal)
        return self.to_logits(self.norm(horizontal))


class OutputLayer(nn.Module):
    """A residual layer of 1x1 convolutions, x + out(relu(in(norm(x)))), on (..., channels)."""

    def __init__(self, channels: int, residual_channels: int, dropout: float):
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, residual_channels), nn.ReLU())
        self.out = nn.Linear(residual_channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.out(self.branch(x)))


class Cache:
    """A prior in the middle of drawing a batch of grids: each position's column of activations is computed once.

    Use: for each row `begin_row`, then for each of its codes `logits` and `write` of the
    code that was chosen. These two read and write buffers that stay where they are and
    keep their place in tensors, so that a CUDA graph can hold them. Row 0 begins anew.
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
        # Of the current row: what the horizontal stack starts from, what each layer gets from above and from the
        # condition, what each layer's kernel reads to the left of the current position, and the codes.
        self.start = torch.empty_like(self.position_embedding[0])
        self.kernels_left = torch.stack([layer.split_kernel()[0] for layer in prior.layers])
        layers, left, added = self.kernels_left.shape
        self.added = self.position_embedding.new_empty(layers, batch, width, added)
        self.left = self.position_embedding.new_empty(layers, batch, left)
        self.sources: list[Tensor] = []  # what the kernels will read at the current position
        self.codes = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.for_vertical: list[Tensor | float] = [0.0] * len(prior.layers)  # read at the next row
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = torch.arange(height * width, device=device)[None]

    def begin_row(self, row: int) -> None:
        """Take the vertical stack through the row before, which is known by now."""
        prior = self.prior
        if row == 0:
            for layer in self.gated:
                layer.rows.zero_()
            for i, state in self.attention.items():
                prior.attention[i].begin(state)
        else:
            embedded = prior.embedding(self.codes)
            vertical = self.position_embedding[row - 1].expand_as(embedded)
        for i, (layer, state) in enumerate(zip(prior.layers, self.gated, strict=True)):
            above: Tensor | float = 0.0
            if row > 0:
                vertical, above = layer.row(state, vertical, embedded, self.for_vertical[i])
            condition = None if self.condition is None else self.condition[:, row]
            self.for_vertical[i], for_horizontal = layer.split_condition(condition)
            self.added[i].copy_(above + for_horizontal + layer.horizontal_in.bias)
        self.left.zero_()
        width = prior.grid.width
        self.start.copy_(self.position_embedding[row])
        self.column.zero_()
        self.position.fill_(row * width)
        if not self.codes.is_cuda:  # a graph attends to all positions, some of them hidden
            self.positions = torch.arange((row + 1) * width)[None]

    def logits(self) -> Tensor:
        """Logits (B, K) of the next code of the current row."""
        prior = self.prior
        horizontal = self.start.index_select(0, self.column).expand(len(self.codes), -1)
        # what the left adds is known before the first layer: one product for all of them
        from_above = self.added.index_select(2, self.column).squeeze(2)
        added = torch.baddbmm(from_above, self.left, self.kernels_left).unbind()
        seen = self.positions <= self.position if self.attention else None
        self.sources.clear()
        for i, (layer, state) in enumerate(zip(prior.layers, self.gated, strict=True)):
            horizontal, source = layer.step(state, horizontal, added[i])
            self.sources.append(source)
            attention = self.attention.get(str(i))
            if attention is not None:
                horizontal = prior.attention[str(i)].step(attention, self.position, seen, horizontal)
        return prior.logits(horizontal)

    def write(self, codes: Tensor) -> None:
        """Note the codes (B,) chosen after the last `logits`, and go on to the next position."""
        prior = self.prior
        self.codes.index_copy_(1, self.column, codes[:, None])
        embedded = prior.embedding(codes)
        sources = torch.stack([embedded, *self.sources[1:]])
        self.left.copy_(torch.cat([self.left[:, :, sources.shape[2] :], sources], dim=2))
        for i, state in self.attention.items():
            prior.attention[i].write(state, embedded)
        self.column += 1
        self.position += 1
