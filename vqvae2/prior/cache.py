"""Cached activations of a prior, with which every value is computed only once during sampling.

Products with inputs of earlier waves are computed for all layers at once, before the loops over the layers. C is
`hidden_channels`, R is `residual_channels`, L is a number of layers, F the number of rows in flight and N the number of
those in which a code is sampled.
"""

from itertools import accumulate, groupby
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqvae2.prior.gated import GatedLayer
from vqvae2.prior.prior import Prior
from vqvae2.prior.waves import Ring, Wavefront


class Cache:
    """Cached activations of a prior for a batch of grids.

    In every wave, call `logits`, then `write` with the codes that were chosen. Both use buffers at fixed addresses, so
    that a CUDA graph can capture them. Wave 0 starts a new batch of grids with the same conditioning.
    """

    def __init__(
        self, prior: Prior, front: Wavefront, batch: int, coarser: dict[str, Tensor] | None, labels: Tensor | None
    ):
        self.prior = prior
        self.front = front
        self.batch = batch
        self.position_embedding = prior.position_embedding().flatten(0, 1)  # (H * W, C)
        condition = prior.condition(batch, coarser, labels)
        layers = list(prior.layers)
        lags = list(accumulate(layer.right for layer in layers))
        self.horizontal = HorizontalStack(layers, lags, condition, self)
        self.vertical: list[VerticalStack] = []
        for _, same_kernel in groupby(layers, key=lambda layer: (layer.extent, layer.right)):
            part = list(same_kernel)
            first = sum(len(x.layers) for x in self.vertical)
            self.vertical.append(VerticalStack(part, lags[first : first + len(part)], condition, self))
        self.attention = AttentionKeys(prior, front, batch)

    def ring(self, layers: int, waves: int, channels: int) -> Ring:
        """A ring for this batch; a row is kept until the rows that read it have passed."""
        rows = self.front.max_rows + self.prior.layers[0].reach
        return Ring(self.position_embedding, layers, self.batch, waves, rows, channels)

    def logits(self) -> Tensor:
        """Logits (B, N, K) of the codes of the wave."""
        horizontal = self.embedded_positions(self.front.code_rows, self.front.code_columns)  # (B * N, C)
        added = self.horizontal.begin()
        seen = self.attention.seen()
        for i in range(len(added)):
            horizontal = self.horizontal.step(i, horizontal, added[i])  # (B * N, C)
            horizontal = self.attention.step(i, horizontal, seen)  # (B * N, C)
        return rearrange(self.prior.logits(horizontal), "(b n) k -> b n k", b=self.batch)

    def write(self, codes: Tensor) -> None:
        """Store the codes chosen from the last `logits`, and advance the vertical stack as far as they allow.

        Args:
            codes: (B, N); with N = 0, after no `logits`, only the vertical stack advances.
        """
        front = self.front
        if front.num_codes > 0:
            embedded = self.prior.embedding(codes).flatten(0, 1)  # (B * N, C)
            self.horizontal.write(embedded)
            self.attention.write(embedded)
        codes = F.pad(codes, (len(front.rows) - front.num_codes, 0))  # (B, F); the first rows are past their last code
        embedded = self.prior.embedding(codes).flatten(0, 1)  # (B * F, C)
        vertical = self.embedded_positions(front.rows, front.columns - self.vertical[0].right)  # (B * F, C)
        values: list[Tensor] = []
        for part in self.vertical:
            vertical = part.advance(vertical, embedded, values)  # (B * F, C)
        self.horizontal.write_above(torch.stack(values))

    def reorder(self, images: Tensor) -> None:
        """Let image i of the batch continue as a copy of image `images[i]`; `images` is int64 (B,)."""
        self.horizontal.reorder(images)
        for part in self.vertical:
            part.reorder(images)
        self.attention.reorder(images)

    def embedded_positions(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Position embedding at `rows` (F,) and `columns` (F,) for each image, (B * F, C)."""
        return self.position_embedding[self.front.nearest(rows, columns)].repeat(self.batch, 1)


class HorizontalStack:
    """The horizontal stack of all layers."""

    def __init__(self, layers: list[GatedLayer], lags: list[int], condition: Tensor | None, cache: Cache):
        self.layers, self.front, self.batch = layers, cache.front, cache.batch
        channels, reach = layers[0].horizontal_in.in_channels, layers[0].reach
        kernels = [layer.horizontal_kernel() for layer in layers]
        left = torch.stack([kernel[: reach * channels] for kernel in kernels])  # (L, reach * C, 2R)
        self.here = [kernel[reach * channels :] for kernel in kernels]  # (C, 2R) each; (0, 2R) for the first layer
        down = torch.stack([layer.downwards.weight.t() for layer in layers])  # (L, 2R, 2R)
        self.down_bias = torch.stack([layer.downwards.bias for layer in layers])[:, None, None]  # (L, 1, 1, 2R)
        bias = torch.stack([cast(Tensor, layer.horizontal_in.bias) for layer in layers])  # (L, 2R)
        self.condition = Condition(layers, 1, bias, condition, cache)
        self.kernel = torch.cat([down, left, *self.condition.kernels], dim=1)
        self.lags = torch.tensor(lags, device=bias.device)[:, None]  # (L, 1)
        self.inputs = cache.ring(len(layers), reach + 1, channels)
        self.above = cache.ring(len(layers), self.front.stride + 1, bias.shape[1])
        self.to_the_left = torch.arange(reach, 0, -1, device=bias.device)

    def begin(self) -> Tensor:
        """Terms of each layer from above, from the left and from the condition, (L, B * N, 2R)."""
        front, left = self.front, self.to_the_left
        rows, columns = front.code_rows[:, None], front.code_columns[:, None]
        is_above = front.is_inside(rows - 1, columns)  # (N, 1)
        above = self.above.read((front.wave - front.stride + self.lags)[:, :, None], rows - 1, is_above[None])
        known = self.inputs.read(front.wave - left, rows, front.is_inside(rows, columns - left)[None])
        bias = self.condition.bias + self.down_bias * is_above  # (L, B or 1, N, 2R)
        self.sources: list[Tensor] = []
        inputs = torch.cat([above, known, *self.condition.at(front.code_rows, front.code_columns[None])], dim=2)
        return torch.baddbmm(bias.expand(-1, self.batch, -1, -1).flatten(1, 2), inputs, self.kernel)

    def step(self, i: int, horizontal: Tensor, added: Tensor) -> Tensor:
        """The horizontal stack (B * N, C) after layer i."""
        horizontal, source = self.layers[i].horizontal_step(horizontal, added, self.here[i])
        self.sources.append(source)
        return horizontal

    def write(self, embedded: Tensor) -> None:
        """Store the inputs of the kernels; that of the first layer is the embedded codes (B * N, C)."""
        front = self.front
        self.inputs.write(front.wave, front.code_rows, front.inside[None], torch.stack([embedded, *self.sources[1:]]))

    def write_above(self, values: Tensor) -> None:
        """Store what the next row receives: the vertical stack before its gates, (L, B * F, 2R)."""
        front = self.front
        self.above.write(front.wave, front.rows, front.is_inside(front.rows, front.columns - self.lags), values)

    def reorder(self, images: Tensor) -> None:
        for x in (self.inputs, self.above, self.condition):
            x.reorder(images)


class VerticalStack:
    """The vertical stack of successive layers whose kernels have the same size."""

    def __init__(self, layers: list[GatedLayer], lags: list[int], condition: Tensor | None, cache: Cache):
        self.layers, self.front, self.batch = layers, cache.front, cache.batch
        self.right, reach, channels = layers[0].right, layers[0].reach, layers[0].vertical_in.in_channels
        kernels = torch.stack([layer.vertical_kernel() for layer in layers])  # (L, (T + 1) * C, 2R), T positions known
        bias = torch.stack([cast(Tensor, layer.vertical_in.bias) for layer in layers])  # (L, 2R)
        self.condition = Condition(layers, 0, bias, condition, cache)
        self.kernel = torch.cat([kernels[:, :-channels], *self.condition.kernels], dim=1)
        self.newest = kernels[:, -channels:].contiguous()
        taps = [(up, x) for up in reversed(range(layers[0].extent)) for x in range(-reach, self.right + 1)][:-1]
        self.up, self.to_the_right = torch.tensor(taps, device=bias.device).unbind(1)  # (T,) each
        self.ago = self.up * self.front.stride + self.right - self.to_the_right  # (T,) waves
        self.lags = torch.tensor(lags, device=bias.device)[:, None]  # (L, 1) after each layer
        self.inputs = cache.ring(len(layers), int(self.ago.max()) + 1, channels)
        # Kernels that reach to the right make a layer lag behind the layer before, whose result then has to be kept.
        delays = self.right > 0 and not layers[0].first
        self.stack = cache.ring(len(layers), self.right + 1, channels) if delays else None

    def advance(self, vertical: Tensor, embedded: Tensor, values: list[Tensor]) -> Tensor:
        """Compute the vertical stack of the layers at one position in each row.

        Args:
            vertical: the vertical stack before the layers, (B * F, C).
            embedded: the embedded codes of the wave, (B * F, C).
            values: receives the value before the gate of each layer, (B * F, 2R).

        Returns:
            The vertical stack after the layers, (B * F, C).
        """
        front = self.front
        rows, columns = front.rows[:, None], front.columns - self.lags  # (F, 1), (L, F)
        inside = front.is_inside(rows - self.up, columns[..., None] + self.to_the_right)  # (L, F, T)
        known = self.inputs.read(front.wave - self.ago, rows - self.up, inside)  # (L, B * F, T * C)
        bias = self.condition.bias.expand(-1, self.batch, len(rows), -1).flatten(1, 2)  # (L, B * F, 2R)
        inputs = torch.cat([known, *self.condition.at(front.rows, columns)], dim=2)
        added = torch.baddbmm(bias, inputs, self.kernel)  # (L, B * F, 2R)
        if self.stack is not None:
            delayed = self.stack.read(front.wave - self.right, rows, front.is_inside(rows[:, 0], columns)[..., None])
        newest_inside = front.is_inside(rows[:, 0], columns + self.right)  # (L, F)
        newest_inputs, stacks = [], []
        for i, layer in enumerate(self.layers):
            newest = embedded if layer.first else layer.vertical_norm(vertical)
            if self.right > 0:  # else a position outside the grid has no effect inside it
                newest = newest * newest_inside[i].repeat(len(newest) // len(front.rows))[:, None]
            newest_inputs.append(newest)
            stacks.append(vertical)
            before = vertical if self.stack is None else delayed[i]
            vertical, value = layer.vertical_step(before, newest, added[i], self.newest[i])
            values.append(value)
        self.inputs.write(front.wave, front.rows, newest_inside, torch.stack(newest_inputs))
        if self.stack is not None:
            self.stack.write(front.wave, front.rows, newest_inside, torch.stack(stacks))
        return vertical

    def reorder(self, images: Tensor) -> None:
        for x in (self.inputs, self.stack, self.condition):
            if x is not None:
                x.reorder(images)


class Condition:
    """What the condition adds to one stack of L layers.

    Attributes:
        bias: the bias, and the term of a condition that is the same at all positions: (L, 1, 1, 2R) or (L, B, 1, 2R).
        kernels: the kernel of a condition that differs between positions, (L, C, 2R), in a list that is else empty.
    """

    def __init__(self, layers: list[GatedLayer], stack: int, bias: Tensor, condition: Tensor | None, cache: Cache):
        """Prepare the terms.

        Args:
            layers: the layers.
            stack: 0 for the vertical and 1 for the horizontal stack.
            bias: (L, 2R).
            condition: the conditioning of the prior, (B, H, W, C), (B, 1, 1, C) or None.
            cache: provides the wave's positions.
        """
        self.front, self.bias = cache.front, bias[:, None, None]
        self.kernels: list[Tensor] = []
        self.maps: list[Tensor] = []  # (B, H * W, C)
        if condition is not None:
            weights = [layer.condition.weight for layer in layers if layer.condition is not None]
            kernels = torch.stack([weight.chunk(2)[stack].t() for weight in weights])
            if condition.shape[1:3] == (1, 1):
                self.bias = self.bias + (condition.flatten(0, 2) @ kernels)[:, :, None]
            else:
                self.kernels, self.maps = [kernels], [condition.flatten(1, 2).contiguous()]

    def at(self, rows: Tensor, columns: Tensor) -> list[Tensor]:
        """Inputs of `kernels` at `rows` (F,) and `columns` (L or 1, F), (L, B * F, C) each."""
        here = [x[:, self.front.nearest(rows, columns)].transpose(0, 1).flatten(1, 2) for x in self.maps]
        return [x.expand(len(self.bias), -1, -1) for x in here]

    def reorder(self, images: Tensor) -> None:
        for x in self.maps:
            x.copy_(x[images])
        if self.bias.shape[1] > 1:
            self.bias.copy_(self.bias[:, images])


class AttentionKeys:
    """Keys and values of the attention layers."""

    def __init__(self, prior: Prior, front: Wavefront, batch: int):
        self.layers, self.front = {int(i): layer for i, layer in prior.attention.items()}, front
        num_positions = front.height * front.width
        self.keys_values = {i: layer.start(batch, num_positions) for i, layer in self.layers.items()}
        self.normed: dict[int, Tensor] = {}
        positions = torch.arange(num_positions, device=front.wave.device)
        self.rows = positions // front.width  # (N,)
        self.waves = positions % front.width + self.rows * front.stride  # (N,)

    def seen(self) -> Tensor | None:
        """Keys that each of the wave's positions attends to, bool (N, keys), with the learned key first."""
        if not self.layers:
            return None
        known = len(self.rows)
        if not self.rows.is_cuda:  # a CUDA graph has a fixed number of keys and masks the later ones
            known = min(known, (int(self.front.code_rows[-1]) + 1) * self.front.width)
        seen = (self.waves[:known] < self.front.wave) & (self.rows[:known] <= self.front.code_rows[:, None])
        return F.pad(seen, (1, 0), value=True)

    def step(self, i: int, horizontal: Tensor, seen: Tensor | None) -> Tensor:
        """Add the attention after gated layer i, if there is any, to the horizontal stack (B * N, C)."""
        if i in self.layers and seen is not None:
            horizontal, self.normed[i] = self.layers[i].step(self.keys_values[i], horizontal, seen)
        return horizontal

    def write(self, embedded: Tensor) -> None:
        """Store the keys and values of the wave's positions, whose embedded codes (B * N, C) are now known."""
        for i, layer in self.layers.items():
            layer.write(self.keys_values[i], self.front.positions + 1, embedded, self.normed[i])

    def reorder(self, images: Tensor) -> None:
        for keys_values in self.keys_values.values():
            keys_values.copy_(keys_values[:, images])
