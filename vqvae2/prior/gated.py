"""The gated causal layer (Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2).

A vertical stack sees the rows above, a horizontal stack sees its own row to the left
and, through the vertical one, the rows above. Together they leave no blind spot.
The gate is a * sigmoid(b), as in PixelSNAIL (Chen et al. 2017): with tanh(a) in place of a the priors
learn no faster, and one fused operation becomes four.
Tensors are (B, H, W, channels) throughout. `forward` works on whole grids, for
training; `row` and `step` do the same sums a row or a code at a time, for sampling.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def convolve(x: Tensor, convolution: nn.Conv2d, above: int, left: int, right: int) -> Tensor:
    """A convolution of (B, H, W, channels) with zeros put above, left and right."""
    x = F.pad(x, (0, 0, left, right, above, 0)) if above or left or right else x
    return rearrange(convolution(rearrange(x, "b h w c -> b c h w")), "b c h w -> b h w c")


class GatedLayer(nn.Module):
    """One gated residual layer of both stacks.

    The first layer reads the embedded codes and must not see the code it predicts: its vertical kernel covers
    the rows above and its horizontal one the codes to the left. Later layers read the stacks, whose position
    i, j knows codes up to row i (vertical) or before i, j (horizontal), so their kernels take in that
    position too. Either way a layer reaches kernel_size // 2 codes further up and to either side.
    """

    def __init__(
        self,
        channels: int,
        residual_channels: int,
        kernel_size: int,
        dropout: float,
        first: bool,
        last: bool,
        conditioned: bool,
    ):
        super().__init__()
        self.reach = kernel_size // 2
        self.extent = self.reach + (not first)  # rows of the vertical kernel, columns of the horizontal one
        self.first = first
        self.vertical_norm = nn.Identity() if first else nn.LayerNorm(channels)
        self.vertical_in = nn.Conv2d(channels, 2 * residual_channels, (self.extent, kernel_size))
        # nobody reads what the last layer would add to the vertical stack
        self.vertical_out = None if last else nn.Linear(residual_channels, channels, bias=False)
        self.downwards = nn.Linear(2 * residual_channels, 2 * residual_channels)
        self.horizontal_norm = nn.Identity() if first else nn.LayerNorm(channels)
        self.horizontal_in = nn.Conv2d(channels, 2 * residual_channels, (1, self.extent))
        self.horizontal_out = nn.Linear(residual_channels, channels, bias=False)
        self.condition = nn.Linear(channels, 4 * residual_channels, bias=False) if conditioned else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, vertical: Tensor, horizontal: Tensor, codes: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both stacks after this layer; all (B, H, W, channels).

        Args:
            vertical: the vertical stack.
            horizontal: the horizontal stack.
            codes: the embedded codes, read by the first layer alone.
            condition: what is known beforehand at each position, (B, H, W, channels) or (B, 1, 1, channels).
        """
        for_vertical, for_horizontal = self.split_condition(condition)
        source = codes if self.first else self.vertical_norm(vertical)
        x = convolve(source, self.vertical_in, above=self.extent - 1, left=self.reach, right=self.reach) + for_vertical
        if self.vertical_out is not None:
            vertical = vertical + self.dropout(self.vertical_out(F.glu(x)))

        # row i gets what the vertical stack knows at row i - 1, ungated: a gate of its own follows
        from_above = F.pad(self.downwards(x), (0, 0, 0, 0, 1, 0))[:, :-1]
        source = codes if self.first else self.horizontal_norm(horizontal)
        x = convolve(source, self.horizontal_in, above=0, left=self.reach, right=0)
        # one position is left over where the kernel ends before the code itself
        x = x[:, :, :-1] if self.first else x
        horizontal = horizontal + self.dropout(self.horizontal_out(F.glu(x + from_above + for_horizontal)))
        return vertical, horizontal

    def split_condition(self, condition: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """What the condition adds to the vertical and to the horizontal gates."""
        if self.condition is None:
            return 0.0, 0.0
        return self.condition(condition).chunk(2, dim=-1)

    def start(self, batch: int, width: int) -> "GatedState":
        """Buffers for drawing `batch` grids of `width` columns: everything outside the grid is zero."""
        _, kernel_here = self.split_kernel()
        rows = kernel_here.new_zeros(batch, self.extent, width + 2 * self.reach, self.horizontal_in.in_channels)
        return GatedState(rows, kernel_here.contiguous())

    def split_kernel(self) -> tuple[Tensor, Tensor]:
        """The horizontal kernel as two matrices: of the positions to the left, (reach * channels, 2 *
        residual_channels), and of the position itself, (channels, 2 * residual_channels), empty in the first layer.
        """
        kernel = rearrange(self.horizontal_in.weight, "out c 1 w -> (w c) out")
        left = self.reach * self.horizontal_in.in_channels
        return kernel[:left], kernel[left:]

    def row(
        self, state: "GatedState", vertical: Tensor, codes: Tensor, for_vertical: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Take the vertical stack through a known row: (B, W, channels) -> the same, and what the next row gets."""
        source = codes if self.first else self.vertical_norm(vertical)
        state.rows.copy_(state.rows.roll(-1, dims=1))
        state.rows[:, -1, self.reach : self.reach + source.shape[1]] = source
        x = convolve(state.rows, self.vertical_in, above=0, left=0, right=0)[:, 0] + for_vertical
        if self.vertical_out is not None:
            vertical = vertical + self.vertical_out(F.glu(x))
        return vertical, self.downwards(x)

    def step(self, state: "GatedState", horizontal: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Take the horizontal stack through one position of the current row: (B, channels) -> the same.

        Args:
            state: this layer's buffers.
            horizontal: the stack at this position.
            added: what comes from above, from the condition and from the left, with the convolution's bias:
                (B, 2 * residual_channels).

        Returns:
            The stack after this layer, and what the kernels of later positions read here, (B, channels): of the
            first layer they read the code instead.
        """
        source = self.horizontal_norm(horizontal)
        x = added if self.first else torch.addmm(added, source, state.kernel_here)
        return torch.addmm(horizontal, F.glu(x), self.horizontal_out.weight.t()), source


@dataclass
class GatedState:
    """Buffers of one layer while codes are drawn.

    Attributes:
        rows: what the vertical kernel reads, its last rows, (B, rows, W + padding, channels).
        kernel_here: the part of the horizontal kernel that reads the position itself (see `split_kernel`).
    """

    rows: Tensor
    kernel_here: Tensor
