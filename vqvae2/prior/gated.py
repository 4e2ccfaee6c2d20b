"""The gated residual layer (Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2).

The vertical stack sees the rows above. The horizontal stack sees the codes to the left in its own row and, through
the vertical stack, the rows above. Together they have no blind spot.

The gate is a * sigmoid(b), as in PixelSNAIL (Chen et al. 2017). With tanh(a) instead of a, the priors learned no
faster, and one fused operation became four.

All tensors are (B, H, W, channels). `forward` processes whole grids, for training. `vertical_step` and
`horizontal_step` compute the same values one wave of positions at a time, for sampling (see waves.py).
"""

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
    upwards and to the left, and by `right` codes to the right in the rows above.
    """

    def __init__(
        self,
        channels: int,
        residual_channels: int,
        kernel_size: int,
        right: int,
        dropout: float,
        first: bool,
        last: bool,
        conditioned: bool,
    ):
        super().__init__()
        self.reach = kernel_size // 2  # codes upwards and to the left
        self.right = right  # columns of the vertical kernel to the right of the position
        self.extent = self.reach + (not first)  # rows of the vertical kernel, columns of the horizontal one
        self.first = first
        self.vertical_norm = nn.Identity() if first else nn.LayerNorm(channels)
        self.vertical_in = nn.Conv2d(channels, 2 * residual_channels, (self.extent, self.reach + 1 + right))
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
        x = convolve(source, self.vertical_in, above=self.extent - 1, left=self.reach, right=self.right) + for_vertical
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

    def vertical_kernel(self) -> Tensor:
        """The vertical kernel as a matrix, (rows * columns * channels, 2 * residual_channels), the newest code last."""
        return rearrange(self.vertical_in.weight, "out c h w -> (h w c) out")

    def horizontal_kernel(self) -> Tensor:
        """The horizontal kernel as a matrix, (columns * channels, 2 * residual_channels), from left to right."""
        return rearrange(self.horizontal_in.weight, "out c 1 w -> (w c) out")

    def vertical_step(self, vertical: Tensor, newest: Tensor, added: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the vertical stack at N positions, one in each row and image.

        Args:
            vertical: the vertical stack before this layer, (N, channels).
            newest: input of the kernel at its last row and column, (N, channels).
            added: terms of the rest of the kernel and of the condition, and the bias, (N, 2 * residual_channels).
            kernel: the last row and column of the kernel, (channels, 2 * residual_channels).

        Returns:
            The vertical stack after this layer, (N, channels), and its value before the gate,
            (N, 2 * residual_channels), which the horizontal stack of the next row receives through `downwards`.
        """
        x = torch.addmm(added, newest, kernel)
        if self.vertical_out is not None:
            vertical = torch.addmm(vertical, F.glu(x), self.vertical_out.weight.t())
        return vertical, x

    def horizontal_step(self, horizontal: Tensor, added: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the horizontal stack at N positions.

        Args:
            horizontal: the horizontal stack before this layer, (N, channels).
            added: terms from above, from the left and from the condition, and the bias, (N, 2 * residual_channels).
            kernel: the part of the kernel at the position itself, (channels, 2 * residual_channels); the first layer
                has none.

        Returns:
            The horizontal stack after this layer, (N, channels), and the input of the kernel, (N, channels), which
            later positions of the row read; the first layer's kernel reads the embedded codes instead.
        """
        source = self.horizontal_norm(horizontal)
        x = added if self.first else torch.addmm(added, source, kernel)
        return torch.addmm(horizontal, F.glu(x), self.horizontal_out.weight.t()), source
