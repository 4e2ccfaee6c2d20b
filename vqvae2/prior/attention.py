"""Causal self-attention over all earlier codes of a grid (Chen et al. 2017, "PixelSNAIL", section 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """Multi-head attention with queries from the horizontal stack, keys and values from that stack and the codes.

    A key that contains a code must be visible to later positions only. The inputs of keys and values are therefore
    shifted by one position in raster order, with a learned vector at position 0. Position p attends to positions
    0 to p of the shifted sequence.

    Dropout drops whole values of a head, for all queries at once. Like dropout of the attention weights, this drops
    terms of the weighted sum, but it needs no random mask of positions x positions and works with fused kernels.
    """

    def __init__(self, channels: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(2 * channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.before_first = nn.Parameter(torch.zeros(2 * channels))

    def forward(self, horizontal: Tensor, codes: Tensor) -> Tensor:
        """Add attention to the horizontal stack. C is `channels`.

        Args:
            horizontal: the horizontal stack, (B, H, W, C).
            codes: the embedded codes, (B, H, W, C).

        Returns:
            The horizontal stack, (B, H, W, C).
        """
        batch, height, width, _ = horizontal.shape
        normed = rearrange(self.norm(horizontal), "b h w c -> b (h w) c")  # (B, N, C), N = H * W
        codes = rearrange(codes, "b h w c -> b (h w) c")  # (B, N, C)
        known = torch.cat([codes.to(normed.dtype), normed], dim=-1)[:, :-1]  # (B, N - 1, 2C)
        known = torch.cat([self.before_first.to(known.dtype).expand(batch, 1, -1), known], dim=1)  # (B, N, 2C)
        # query, key and value: (B, heads, N, d), d = C / heads
        query = rearrange(self.query(normed), "b n (heads d) -> b heads n d", heads=self.heads)
        key, value = rearrange(self.key_value(known), "b n (two heads d) -> two b heads n d", two=2, heads=self.heads)
        value = value * self.dropout(torch.ones_like(value[..., :1]))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, heads, N, d)
        attended = rearrange(attended, "b heads (h w) d -> b h w (heads d)", h=height, w=width)  # (B, H, W, C)
        return horizontal + self.dropout(self.out(attended))

    def start(self, batch: int, num_positions: int) -> "AttentionState":
        """Buffers for sampling `batch` grids of `num_positions` codes."""
        weight = self.query.weight
        channels = weight.shape[0]
        # at least float32: on a CPU, bf16 attention with a single query takes five times as long
        dtype = torch.promote_types(weight.dtype, torch.float32)
        keys_values = weight.new_zeros(2, batch, self.heads, num_positions, channels // self.heads, dtype=dtype)
        return AttentionState(keys_values, known=weight.new_empty(batch, 2 * channels))

    def begin(self, state: "AttentionState") -> None:
        """Reset the buffers before the first position of a grid."""
        state.known.copy_(self.before_first)

    def step(self, state: "AttentionState", position: Tensor, seen: Tensor, horizontal: Tensor) -> Tensor:
        """Compute the horizontal stack at one position: (B, channels) -> (B, channels).

        Positions are processed in raster order; `write` must have been called for the previous one.

        Args:
            state: buffers of this layer.
            position: index in raster order, int64 (1,).
            seen: mask of the positions to attend to, bool (1, positions).
            horizontal: the horizontal stack at this position, (B, channels).
        """
        batch, channels = horizontal.shape
        normed = self.norm(horizontal)
        known = self.key_value(state.known).view(batch, 2, self.heads, 1, -1).transpose(0, 1)
        state.keys_values.index_copy_(3, position, known.to(state.keys_values.dtype))
        key, value = state.keys_values[:, :, :, : seen.shape[1]]
        query = self.query(normed).view(batch, self.heads, 1, -1).to(key.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        state.known[:, channels:] = normed
        return horizontal + self.out(attended.view(batch, channels).to(normed.dtype))

    def write(self, state: "AttentionState", code: Tensor) -> None:
        """Store the embedded code (B, channels) that was chosen at the position of the last `step`."""
        state.known[:, : code.shape[1]] = code


@dataclass
class AttentionState:
    """Buffers of one attention layer during sampling.

    Attributes:
        keys_values: (2, B, heads, positions, channels per head), filled up to the current position.
        known: input of the next key and value, (B, 2 * channels): the embedded code, then the normalized stack.
    """

    keys_values: Tensor
    known: Tensor
