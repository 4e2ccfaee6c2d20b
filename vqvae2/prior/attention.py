"""Causal self-attention over all earlier codes of a grid (Chen et al. 2017, "PixelSNAIL", section 2)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

MANY_POSITIONS = 1024  # from so many on, a CPU computes attention in bf16 as fast as in float32


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention over all earlier keys, or over those of the mask, bool (N, N). All tensors are (B, heads, N, d).

    On a CPU, the backward pass of bf16 attention takes up to six times as long as that of float32 attention.
    """
    if query.device.type == "cpu" and query.shape[2] < MANY_POSITIONS:
        dtype = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(
                query.to(dtype), key.to(dtype), value.to(dtype), attn_mask=mask, is_causal=mask is None
            )
        return attended.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)


class CausalAttention(nn.Module):
    """Multi-head attention with queries from the horizontal stack, keys and values from that stack and the codes.

    A key that contains a code must be visible to later positions only. The inputs of keys and values are therefore
    shifted by one position in raster order, with a learned vector at position 0, which all positions attend to.

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

    def forward(self, horizontal: Tensor, codes: Tensor, seen: Tensor | None) -> Tensor:
        """Add attention to the horizontal stack. C is `channels`.

        Args:
            horizontal: the horizontal stack, (B, H, W, C).
            codes: the embedded codes, (B, H, W, C).
            seen: which positions each position attends to, bool (N, N), N = H * W, in raster order; None: all earlier
                ones.

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
        mask = None if seen is None else F.pad(seen, (1, -1), value=True)  # (N, N), of the shifted keys
        # (B, heads, N, d)
        attended = attend(query, key, value, mask)
        attended = rearrange(attended, "b heads (h w) d -> b h w (heads d)", h=height, w=width)  # (B, H, W, C)
        return horizontal + self.dropout(self.out(attended))

    def start(self, batch: int, num_positions: int) -> Tensor:
        """Keys and values of `batch` grids, (2, B, heads, num_positions + 2, d), for `step` and `write`.

        The first ones are those of the learned vector, the last ones are never attended to.
        """
        weight = self.query.weight
        # at least float32: on a CPU, bf16 attention with few queries is slower
        dtype = torch.promote_types(weight.dtype, torch.float32)
        shape = (2, batch, self.heads, num_positions + 2, len(weight) // self.heads)
        keys_values = weight.new_zeros(shape, dtype=dtype)
        first = rearrange(self.key_value(self.before_first), "(two heads d) -> two 1 heads d", two=2, heads=self.heads)
        keys_values[:, :, :, 0] = first.to(dtype)
        return keys_values

    def step(self, keys_values: Tensor, horizontal: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Add attention at F positions of each image. C is `channels`.

        Args:
            keys_values: result of `start`, filled by `write`.
            horizontal: the horizontal stack at these positions, (B * F, C).
            seen: which of the first M keys each position attends to, bool (F, M).

        Returns:
            The horizontal stack, (B * F, C), and the part of the input of later keys and values, (B * F, C).
        """
        normed = self.norm(horizontal)
        key, value = keys_values[:, :, :, : seen.shape[1]]
        query = rearrange(self.query(normed), "(b f) (heads d) -> b heads f d", f=len(seen), heads=self.heads)
        attended = F.scaled_dot_product_attention(query.to(key.dtype), key, value, attn_mask=seen)
        attended = rearrange(attended, "b heads f d -> (b f) (heads d)")
        return horizontal + self.out(attended.to(normed.dtype)), normed

    def write(self, keys_values: Tensor, keys: Tensor, codes: Tensor, normed: Tensor) -> None:
        """Store the keys and values of the positions of the last `step`, whose codes are now known.

        Args:
            keys_values: result of `start`.
            keys: index of each position's key, int64 (F,).
            codes: the embedded codes, (B * F, C).
            normed: the second result of `step`, (B * F, C).
        """
        known = self.key_value(torch.cat([codes, normed], dim=-1))
        known = rearrange(known, "(b f) (two heads d) -> two b heads f d", f=len(keys), two=2, heads=self.heads)
        keys_values.index_copy_(3, keys, known.to(keys_values.dtype))
