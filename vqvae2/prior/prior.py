"""The prior of one level: p(codes | coarser levels' codes, label), one code after another in raster order."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae2.config import LevelShape, PriorConfig
from vqvae2.prior.attention import AttentionState, CausalAttention
from vqvae2.prior.conditioning import CoarserCodes, Label
from vqvae2.prior.gated import GatedLayer, GatedState


class Reach(NamedTuple):
    """How far back a prior sees: rows up, and columns to either side; None: everything before."""

    rows: int | None
    columns: int | None


class Prior(nn.Module):
    """Gated causal convolutions in two stacks, with causal attention after some of the layers."""

    def __init__(self, config: PriorConfig, shape: LevelShape, coarser: list[LevelShape], num_classes: int):
        """The prior of the level `shape`, given the codes of the levels `coarser` (coarsest first)."""
        super().__init__()
        self.config = config
        self.shape = shape
        self.coarser = coarser
        self.num_classes = num_classes
        channels, residual, dropout = config.hidden_channels, config.residual_channels, config.dropout
        conditioned = bool(coarser) or num_classes > 0
        self.embedding = nn.Embedding(shape.codebook_size, channels)
        self.row_position = nn.Parameter(torch.empty(shape.height, 1, channels))
        self.column_position = nn.Parameter(torch.empty(1, shape.width, channels))
        self.label = Label(num_classes, channels) if num_classes else None
        self.coarser_codes = (
            CoarserCodes(coarser, shape, channels, residual, config.conditioning_layers, dropout) if coarser else None
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
        self.to_logits = nn.Linear(channels, shape.codebook_size)
        self._initialise()
        self.to(memory_format=torch.channels_last)

    def _initialise(self) -> None:
        nn.init.normal_(self.row_position, std=0.1)
        nn.init.normal_(self.column_position, std=0.1)
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
        vertical = horizontal = self.positions().expand_as(embedded)
        for i, layer in enumerate(self.layers):
            vertical, horizontal = layer(vertical, horizontal, embedded, condition)
            if str(i) in self.attention:
                horizontal = self.attention[str(i)](horizontal, embedded)
        return rearrange(self.logits(horizontal), "b h w k -> b k h w")

    def positions(self) -> Tensor:
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

    Use: for each row `begin_row`, for each column `logits` and then `write` of
    the code that was chosen there.
    """

    def __init__(self, prior: Prior, batch: int, coarser: dict[str, Tensor] | None, labels: Tensor | None):
        self.prior = prior
        height, width = prior.shape.height, prior.shape.width
        condition = prior.condition(batch, coarser, labels)
        self.gated: list[GatedState] = [layer.start(batch, width) for layer in prior.layers]
        self.attention: dict[str, AttentionState] = {
            i: layer.start(batch, height * width) for i, layer in prior.attention.items()
        }
        self.condition = None if condition is None else condition.expand(batch, height, -1, -1)
        self.positions = prior.positions()
        residual = prior.config.residual_channels
        self.added = [self.positions.new_zeros(batch, width, 2 * residual) for _ in prior.layers]
        self.for_vertical: list[Tensor | float] = [0.0] * len(prior.layers)  # of the current row, read at the next
        self.codes = torch.zeros(batch, width, dtype=torch.long, device=self.positions.device)
        self.row = self.column = 0

    def begin_row(self, row: int) -> None:
        """Take the vertical stack through the row before, which is known by now."""
        prior = self.prior
        self.row = row
        if row > 0:
            embedded = prior.embedding(self.codes)
            vertical = self.positions[row - 1].expand_as(embedded)
        for i, (layer, state) in enumerate(zip(prior.layers, self.gated, strict=True)):
            above: Tensor | float = 0.0
            if row > 0:
                vertical, above = layer.row(state, vertical, embedded, self.for_vertical[i])
            condition = None if self.condition is None else self.condition[:, row]
            self.for_vertical[i], for_horizontal = layer.split_condition(condition)
            self.added[i].copy_((above + for_horizontal + layer.horizontal_in.bias).expand_as(self.added[i]))

    def logits(self, column: int) -> Tensor:
        """Logits (B, K) of the code at `column` of the current row."""
        prior = self.prior
        self.column = column
        horizontal = self.positions[self.row, column].expand(len(self.codes), -1)
        position = self.row * prior.shape.width + column
        for i, (layer, state, added) in enumerate(zip(prior.layers, self.gated, self.added, strict=True)):
            horizontal = layer.step(state, column, horizontal, added[:, column])
            if str(i) in self.attention:
                horizontal = prior.attention[str(i)].step(self.attention[str(i)], position, horizontal)
        return prior.logits(horizontal)

    def write(self, codes: Tensor) -> None:
        """Note the codes (B,) chosen at the position of the last `logits`."""
        prior = self.prior
        self.codes[:, self.column] = codes
        embedded = prior.embedding(codes)
        prior.layers[0].write(self.gated[0], self.column, embedded)
        for i, state in self.attention.items():
            prior.attention[i].write(state, embedded)
