"""The gated residual layer (Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2).

The vertical stack sees the rows above. The horizontal stack sees the codes to the left in its own row and, through
the vertical stack, the rows above. Together they have no blind spot.

The gate is a * sigmoid(b), as in PixelSNAIL (Chen et al. 2017). With tanh(a) instead of a, the priors learned no
faster, and one fused operation became four.

All tensors are (B, H, W, channels). `forward` processes whole grids, for training. `row` and `step` compute the
same values one row or one code at a time, for sampling.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def convolve(x: Tensor, convolution: nn.Conv2d, above: int, left: int, right: int) -> Tensor:
    """Convolve (B, H, W, channels) with zero padding above, left and right."""
    x = F.pad(x, (0, 0, left, right, above, 0)) if above or left or right else x
    return rearrange(convolution(rearrange(x, "b h w c -> b c h w")), "b c h w -> b h w c")


class GatedLayer(nn.Module):
    """One gated residual layer of the vertical and the horizontal stack.

    The first layer reads the embedded codes and must not see the code that it predicts: its vertical kernel covers
    the rows above, its horizontal kernel the codes to the left. Later layers read the stacks. At position (i, j),
    the vertical stack depends on codes up to row i and the horizontal stack on codes before (i, j), so the kernels
    of later layers include the position itself. Every layer extends the receptive field by kernel_size // 2 codes
    upwards and to either side.
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
        # no layer reads the vertical stack after the last layer
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
        """Compute both stacks after this layer. C is `channels`, R is `residual_channels`.

        Args:
            vertical: the vertical stack, (B, H, W, C).
            horizontal: the horizontal stack, (B, H, W, C).
            codes: the embedded codes, (B, H, W, C); only the first layer reads them.
            condition: the conditioning at each position, (B, H, W, C) or (B, 1, 1, C); None: no conditioning.

        Returns:
            The vertical and the horizontal stack, (B, H, W, C) each.
        """
        for_vertical, for_horizontal = self.split_condition(condition)
        source = codes if self.first else self.vertical_norm(vertical)
        # (B, H, W, 2R)
        x = convolve(source, self.vertical_in, above=self.extent - 1, left=self.reach, right=self.reach) + for_vertical
        if self.vertical_out is not None:
            vertical = vertical + self.dropout(self.vertical_out(F.glu(x)))  # (B, H, W, C)

        # row i receives the vertical stack of row i - 1, before its gate: the horizontal stack has its own gate
        from_above = F.pad(self.downwards(x), (0, 0, 0, 0, 1, 0))[:, :-1]  # (B, H, W, 2R)
        source = codes if self.first else self.horizontal_norm(horizontal)
        # (B, H, W, 2R), and one more column in the first layer, whose kernel excludes the position itself
        x = convolve(source, self.horizontal_in, above=0, left=self.reach, right=0)
        x = x[:, :, :-1] if self.first else x  # (B, H, W, 2R)
        # (B, H, W, C)
        horizontal = horizontal + self.dropout(self.horizontal_out(F.glu(x + from_above + for_horizontal)))
        return vertical, horizontal

    def split_condition(self, condition: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """The terms that the condition adds before the gates of the vertical and the horizontal stack."""
        if self.condition is None:
            return 0.0, 0.0
        return self.condition(condition).chunk(2, dim=-1)

    def start(self, batch: int, width: int) -> "GatedState":
        """Buffers for sampling `batch` grids of `width` columns; positions outside the grid are zero."""
        _, kernel_here = self.split_kernel()
        rows = kernel_here.new_zeros(batch, self.extent, width + 2 * self.reach, self.horizontal_in.in_channels)
        return GatedState(rows, kernel_here.contiguous())

    def split_kernel(self) -> tuple[Tensor, Tensor]:
        """Split the horizontal kernel into two matrices.

        Returns:
            The part for the positions to the left, (reach * channels, 2 * residual_channels), and the part for the
            position itself, (channels, 2 * residual_channels), which is empty in the first layer.
        """
        kernel = rearrange(self.horizontal_in.weight, "out c 1 w -> (w c) out")
        left = self.reach * self.horizontal_in.in_channels
        return kernel[:left], kernel[left:]

    def row(
        self, state: "GatedState", vertical: Tensor, codes: Tensor, for_vertical: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Compute the vertical stack of a row whose codes are known.

        Args:
            state: buffers of this layer.
            vertical: the vertical stack of the row, (B, W, channels).
            codes: the embedded codes of the row, (B, W, channels).
            for_vertical: the term that the condition adds to this row.

        Returns:
            The vertical stack after this layer, (B, W, channels), and the term that this row adds to the horizontal
            stack of the next row, (B, W, 2 * residual_channels).
        """
        source = codes if self.first else self.vertical_norm(vertical)
        state.rows.copy_(state.rows.roll(-1, dims=1))
        state.rows[:, -1, self.reach : self.reach + source.shape[1]] = source
        x = convolve(state.rows, self.vertical_in, above=0, left=0, right=0)[:, 0] + for_vertical
        if self.vertical_out is not None:
            vertical = vertical + self.vertical_out(F.glu(x))
        return vertical, self.downwards(x)

    def step(self, state: "GatedState", horizontal: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the horizontal stack at one position of the current row.

        Args:
            state: buffers of this layer.
            horizontal: the horizontal stack at this position, (B, channels).
            added: sum of the terms from above, from the condition and from the left and the bias of the convolution,
                (B, 2 * residual_channels).

        Returns:
            The horizontal stack after this layer, (B, channels), and the input of this layer's kernel at this
            position, (B, channels), for later positions; the first layer's kernel reads the embedded code instead.
        """
        source = self.horizontal_norm(horizontal)
        x = added if self.first else torch.addmm(added, source, state.kernel_here)
        return torch.addmm(horizontal, F.glu(x), self.horizontal_out.weight.t()), source


@dataclass
class GatedState:
    """Buffers of one gated layer during sampling.

    Attributes:
        rows: the last rows of the vertical kernel's input, (B, rows, W + padding, channels).
        kernel_here: the part of the horizontal kernel that reads the position itself (see `split_kernel`).
    """

    rows: Tensor
    kernel_here: Tensor
