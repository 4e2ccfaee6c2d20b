"""Causal self-attention over all earlier codes of a grid (Chen et al. 2017, "PixelSNAIL", section 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """Multi-head attention: queries from the horizontal stack, keys and values from that stack and the codes.

    A key that holds a code may only be seen by later positions, so keys and values
    stand one position later than what they are made of, in raster order, and a learned
    vector stands at position 0: position p then attends to positions 0..p.

    Dropout hides a value of a head from all queries alike, not from each by itself: the sum is as that of dropped
    attention weights, but no matrix of positions by positions is drawn, and the fused kernels serve.
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
        """(B, H, W, channels) and the embedded codes of that shape -> the stack with what attention adds."""
        batch, height, width, _ = horizontal.shape
        normed = rearrange(self.norm(horizontal), "b h w c -> b (h w) c")
        codes = rearrange(codes, "b h w c -> b (h w) c")
        known = torch.cat([codes.to(normed.dtype), normed], dim=-1)[:, :-1]
        known = torch.cat([self.before_first.to(known.dtype).expand(batch, 1, -1), known], dim=1)
        query = rearrange(self.query(normed), "b n (heads d) -> b heads n d", heads=self.heads)
        key, value = rearrange(self.key_value(known), "b n (two heads d) -> two b heads n d", two=2, heads=self.heads)
        value = value * self.dropout(torch.ones_like(value[..., :1]))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended = rearrange(attended, "b heads (h w) d -> b h w (heads d)", h=height, w=width)
        return horizontal + self.dropout(self.out(attended))

    def start(self, batch: int, num_positions: int) -> "AttentionState":
        """Buffers for drawing `batch` grids of `num_positions` codes."""
        weight = self.query.weight
        channels = weight.shape[0]
        # at least float32: with a single query bf16 attention takes five times as long on a CPU
        dtype = torch.promote_types(weight.dtype, torch.float32)
        keys_values = weight.new_zeros(2, batch, self.heads, num_positions, channels // self.heads, dtype=dtype)
        return AttentionState(keys_values, known=weight.new_empty(batch, 2 * channels))

    def begin(self, state: "AttentionState") -> None:
        """Before the first position."""
        state.known.copy_(self.before_first)

    def step(self, state: "AttentionState", position: Tensor, seen: Tensor, horizontal: Tensor) -> Tensor:
        """One position, in raster order: (B, channels) -> (B, channels).

        `write` must have been called for the position before.

        Args:
            state: this layer's buffers.
            position: in raster order, int64 (1,).
            seen: which of the first positions are attended to, bool (1, positions).
            horizontal: the stack at this position.
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
        """Note the embedded code (B, channels) that was drawn at the position of the last `step`."""
        state.known[:, : code.shape[1]] = code


@dataclass
class AttentionState:
    """Buffers of one attention layer while codes are drawn.

    Attributes:
        keys_values: (2, B, heads, positions, channels per head), filled up to the current position.
        known: what the next key and value are made of, (B, 2 * channels): embedded code, then the stack.
    """

    keys_values: Tensor
    known: Tensor
