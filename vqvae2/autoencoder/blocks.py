"""Convolutional blocks of the autoencoder (Razavi et al. 2019, section 3.1 and appendix A)."""

import itertools
from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module]  # makes the module


class ResidualBlock(nn.Module):
    """Residual block x + conv1x1(activation(conv3x3(activation(x)))) on (B, channels, H, W)."""

    def __init__(self, channels: int, residual_channels: int, activation: Activation = nn.ReLU):
        super().__init__()
        self.activation = activation()
        self.spread = nn.Conv2d(channels, residual_channels, 3, padding=1)
        self.merge = nn.Conv2d(residual_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.spread(self.activation(x))  # (B, residual_channels, H, W)
        return x + self.merge(self.activation(residual))  # (B, channels, H, W)


def encoder(
    in_channels: int,
    hidden_channels: int,
    residual_channels: int,
    residual_layers: int,
    ratio: int,
    activation: Activation = nn.ReLU,
) -> nn.Sequential:
    """Encoder (B, in_channels, H, W) -> (B, hidden_channels, H / ratio, W / ratio).

    Each strided convolution halves height and width.
    """
    halvings = ratio.bit_length() - 1
    widths = [in_channels, hidden_channels // 2] + [hidden_channels] * (halvings - 1)
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), activation()]
    layers.append(nn.Conv2d(widths[-1], hidden_channels, 3, padding=1))
    layers += [ResidualBlock(hidden_channels, residual_channels, activation) for _ in range(residual_layers)]
    return nn.Sequential(*layers, activation())


def decoder(
    in_channels: int,
    hidden_channels: int,
    residual_channels: int,
    residual_layers: int,
    ratio: int,
    out_channels: int,
    activation: Activation = nn.ReLU,
) -> nn.Sequential:
    """Decoder (B, in_channels, H, W) -> (B, out_channels, H * ratio, W * ratio), the reverse of `encoder`.

    Each transposed convolution doubles height and width.
    """
    doublings = ratio.bit_length() - 1
    widths = [hidden_channels] * (doublings - 1) + [hidden_channels // 2] * (doublings > 1) + [out_channels]
    widths = [hidden_channels, *widths][-doublings - 1 :]
    layers: list[nn.Module] = [nn.Conv2d(in_channels, hidden_channels, 3, padding=1)]
    layers += [ResidualBlock(hidden_channels, residual_channels, activation) for _ in range(residual_layers)]
    for wide, narrow in itertools.pairwise(widths):
        layers += [activation(), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)


def inputs_per_output(convolution: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """Number of products summed in each output value.

    In a strided transposed convolution, each output uses only a part of the kernel.
    """
    if isinstance(convolution, nn.ConvTranspose2d):
        (height, width), (down, right) = convolution.kernel_size, convolution.stride
        return convolution.in_channels * (height // down) * (width // right)
    return convolution.weight[0].numel()
