"""Causal self-attention over all earlier codes of a grid (Chen et al. 2017, "PixelSNAIL", section 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """Multi-head attention: queries from the horizontal stack, keys and values from that stack and the codes.

    A key that holds a code may only be seen by later positions, so keys and values
    stand one place later than what they are made of, in raster order, and a learned
    vector stands in the first place: position p then attends to places 0..p.
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
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        attended = rearrange(attended, "b heads (h w) d -> b h w (heads d)", h=height, w=width)
        return horizontal + self.dropout(self.out(attended))

    def start(self, batch: int, positions: int) -> "AttentionState":
        """Buffers for drawing `batch` grids of `positions` codes."""
        weight = self.query.weight
        channels = weight.shape[0]
        keys_values = weight.new_zeros(2, batch, self.heads, positions, channels // self.heads)
        return AttentionState(keys_values, self.before_first.detach().expand(batch, -1).clone())

    def step(self, state: "AttentionState", position: int, horizontal: Tensor) -> Tensor:
        """One position, in raster order: (B, channels) -> (B, channels).

        `write` must have been called for the position before.
        """
        normed = self.norm(horizontal)
        state.keys_values[:, :, :, position] = rearrange(
            self.key_value(state.known), "b (two heads d) -> two b heads d", two=2, heads=self.heads
        )
        query = rearrange(self.query(normed), "b (heads d) -> b heads 1 d", heads=self.heads)
        key, value = state.keys_values[:, :, :, : position + 1]
        attended = F.scaled_dot_product_attention(query, key, value)
        state.known[:, normed.shape[1] :] = normed
        return horizontal + self.out(attended.flatten(1))

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
