"""The encoder and decoder trunk that all models of the family share, from the blocks of the autoencoder."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.autoencoder.blocks import ResidualBlock, decoder, encoder, inputs_per_output
from vqvae2.family.member import Setting
from vqvae2.images.convert import to_float

OUTPUT_SCALE = 0.3  # initial scale of the outputs, relative to that of the hidden layers


class Trunk(nn.Module):
    """One encoder or decoder: convolutions and one fully connected layer, which may receive the label.

    `encode` maps images to `outputs` numbers, `decode` maps `inputs` numbers to an image of parameters of the pixel
    distribution. A model has one trunk for each direction it needs; both have the same widths.
    """

    def __init__(self, setting: Setting, inputs: int = 0, outputs: int = 0, conditional: bool = False):
        """Build an encoder with `outputs` numbers, or a decoder with `inputs` numbers.

        Args:
            setting: sizes of the images and of the layers.
            inputs: numbers that a decoder reads; 0: the trunk is an encoder.
            outputs: numbers that an encoder returns; 0: the trunk is a decoder.
            conditional: whether the embedding of the label is added to the fully connected layer; it starts at zero.
        """
        super().__init__()
        config, channels = setting.config, setting.channels
        height, width = (side // config.stride for side in setting.height_width)
        self.grid = (config.hidden_channels, height, width)
        flat = math.prod(self.grid)
        widths = (config.hidden_channels, config.residual_channels, config.residual_layers, config.stride)
        if outputs:
            self.convolutions = encoder(channels, *widths)
        else:
            self.convolutions = decoder(config.hidden_channels, *widths, channels)
        self.read = nn.Linear(flat if outputs else inputs, config.units)
        self.write = nn.Linear(config.units, outputs or flat)
        self.label = nn.Embedding(setting.num_classes, config.units) if conditional else None
        self._initialise()
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialize as in He et al. 2015; residual blocks start as the identity, the label without effect."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                inputs = layer.in_features if isinstance(layer, nn.Linear) else inputs_per_output(layer)
                layer.weight.normal_(std=math.sqrt(2 / inputs))
                cast(Tensor, layer.bias).zero_()
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                block.merge.weight.zero_()
        # the first latents vary little, the first image is close to the middle of its range
        last = self.write if isinstance(self.convolutions[-1], nn.ReLU) else self.convolutions[-1]
        cast(nn.Linear, last).weight.mul_(OUTPUT_SCALE)
        if self.label is not None:
            self.label.weight.zero_()

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), uint8 or float in [-1, 1], -> (B, outputs)."""
        return self.from_features(self.features(images), labels)

    def features(self, images: Tensor) -> Tensor:
        """Outputs of the convolutions, (B, hidden_channels * h * w)."""
        x = to_float(images) if images.dtype == torch.uint8 else images
        return self.convolutions(x.contiguous(memory_format=torch.channels_last)).flatten(1)

    def from_features(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Outputs (B, outputs) of the fully connected layers."""
        return self.write(self._units(features, labels))

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (B, inputs) -> parameters of the pixel distribution (B, C, H, W)."""
        x = F.relu(self.write(self._units(latents, labels))).unflatten(1, self.grid)  # (B, hidden_channels, h, w)
        return self.convolutions(x.contiguous(memory_format=torch.channels_last))  # (B, C, H, W)

    def _units(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The fully connected layer (B, units)."""
        x = self.read(x)
        return F.relu(x if self.label is None else x + self.label(labels))
