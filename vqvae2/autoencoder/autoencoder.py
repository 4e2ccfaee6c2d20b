"""The hierarchical autoencoder of VQ-VAE-2, with any number of levels."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.autoencoder.blocks import ResidualBlock, decoder, encoder, inputs_per_output
from vqvae2.autoencoder.quantiser import Quantised, Quantiser
from vqvae2.config import AutoencoderConfig
from vqvae2.images.convert import to_float, to_uint8

FEATURE_SCALE = 0.3  # of a new network's features, beside that of its hidden activations
IMAGE_SCALE = 0.1  # likewise of its image
INPUTS_AT_RATE = 4096  # of a layer that would learn at the rate itself; half and a quarter of it learnt more slowly
LARGEST_RATE_FACTOR = 8.0


class Reconstruction(NamedTuple):
    """Decoded images (B, C, H, W), about [-1, 1], and what each level made of its features, coarsest first."""

    images: Tensor
    quantised: list[Quantised]


class Losses(NamedTuple):
    """The terms of the loss as means over elements, and their weighted sum `total`."""

    total: Tensor
    reconstruction: Tensor
    commitment: Tensor
    codebook: Tensor


class Autoencoder(nn.Module):
    """Encoders from fine to coarse, quantisers and decoders from coarse to fine (Razavi et al. 2019, algorithm 1).

    The coarsest level is quantised first. The decoder of a level sees its code vectors and all
    coarser ones; what it makes of them joins the next finer level's features before that level
    is quantised. The finest level's decoder makes the image. Lists run coarsest level first.
    """

    def __init__(self, config: AutoencoderConfig, channels: int):
        """`channels`: of the images."""
        super().__init__()
        self.config = config
        hidden = config.hidden_channels
        widths = (hidden, config.residual_channels, config.residual_layers)
        levels = config.levels
        self.names = [level.name for level in levels]
        finer_strides = [level.stride for level in levels[1:]] + [1]
        ratios = [level.stride // finer for level, finer in zip(levels, finer_strides, strict=True)]
        inputs = [hidden] * (len(levels) - 1) + [channels]
        contexts = [0] + [level.code_dim for level in levels[1:]]
        outputs = [*contexts[1:], channels]

        self.encoders = nn.ModuleList(encoder(n, *widths, ratio) for n, ratio in zip(inputs, ratios, strict=True))
        self.to_codes = nn.ModuleList(
            nn.Conv2d(hidden + context, level.code_dim, 1) for level, context in zip(levels, contexts, strict=True)
        )
        self.quantisers = nn.ModuleList(
            Quantiser(level.codebook_size, level.code_dim, learned=config.codebook_update == "loss") for level in levels
        )
        self.decoders = nn.ModuleList(
            decoder(level.code_dim + context, *widths, ratio, out)
            for level, context, ratio, out in zip(levels, contexts, ratios, outputs, strict=True)
        )
        self._initialise()
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _initialise(self) -> None:
        """He et al. 2015, so that the signal keeps its size; residual blocks begin as the identity.

        The features begin small, for the commitment loss not to outweigh their use, and the image near its mean.
        """
        for convolution in self._convolutions():
            convolution.weight.normal_(std=math.sqrt(2 / inputs_per_output(convolution)))
            convolution.bias.zero_()
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                block.merge.weight.zero_()
        for to_codes in self.to_codes:
            to_codes.weight.mul_(FEATURE_SCALE)
        self.decoders[-1][-1].weight.mul_(IMAGE_SCALE)

    def rate_factors(self) -> dict[nn.Parameter, float]:
        """By what the learning rate is multiplied for the weights of each convolution.

        An update of Adam moves every weight by about the rate, so a layer's output moves by the rate times the
        number of its inputs, and layers with few inputs would hardly learn (Yang et al. 2022, Tensor Programs V,
        table 3: the rate goes with 1 / inputs).
        """
        return {x.weight: min(LARGEST_RATE_FACTOR, INPUTS_AT_RATE / inputs_per_output(x)) for x in self._convolutions()}

    def _convolutions(self) -> Iterator[nn.Conv2d | nn.ConvTranspose2d]:
        return (x for x in self.modules() if isinstance(x, (nn.Conv2d, nn.ConvTranspose2d)))

    def forward(self, images: Tensor, shown_levels: Tensor | None = None, quantises: bool = True) -> Reconstruction:
        """Images (B, C, H, W), uint8 or float in [-1, 1] -> their reconstruction.

        Args:
            images: what is reconstructed.
            shown_levels: (B,), how many levels of each image reach the decoders, coarsest first; None: all. The
                mean of its codebook stands at each position of a hidden level.
            quantises: if not, the decoders get the features themselves.
        """
        quantised = []
        context = None
        for i, (features, to_codes, quantiser, decode) in enumerate(
            zip(self._features(images), self.to_codes, self.quantisers, self.decoders, strict=True)
        ):
            features = to_codes(_join(features, context))
            result = quantiser(features) if quantises else quantiser.pass_through(features)
            quantised.append(result)
            vectors = result.vectors
            if shown_levels is not None:
                shown = (shown_levels > i).view(-1, 1, 1, 1)
                vectors = torch.where(shown, vectors, quantiser.mean_vector().to(vectors.dtype))
            context = decode(_join(vectors, context))
        return Reconstruction(context, quantised)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W), uint8 or float in [-1, 1] -> codes (B, H / stride, W / stride) by level, int64."""
        codes = {}
        context = None
        for i, features in enumerate(self._features(images)):
            name, quantiser = self.names[i], self.quantisers[i]
            codes[name] = quantiser.encode(self.to_codes[i](_join(features, context)))
            if i + 1 < len(self.names):
                context = self.decoders[i](_join(quantiser.look_up(codes[name]), context))
        return codes

    def decode(self, codes: dict[str, Tensor]) -> Tensor:
        """Codes of every level -> uint8 images (B, C, H, W).

        Levels may be left out from the finest up: the mean of their codebook
        then stands at each of their positions.
        """
        context = None
        for name, quantiser, decode in zip(self.names, self.quantisers, self.decoders, strict=True):
            if name in codes:
                vectors = quantiser.look_up(codes[name])
            else:
                batch, _, height, width = context.shape
                vectors = quantiser.mean_vector().expand(batch, -1, height, width)
            context = decode(_join(vectors, context))
        return to_uint8(context)

    def losses(self, images: Tensor, reconstruction: Reconstruction) -> Losses:
        """The loss of a reconstruction of `images` (Oord et al. 2017, equation 3), summed over the levels."""
        distance = {"mse": F.mse_loss, "l1": F.l1_loss}[self.config.reconstruction_loss]
        decoded = reconstruction.images
        term = distance(decoded, as_float(images, decoded.dtype))
        commitment = sum(x.commitment_loss for x in reconstruction.quantised)
        codebook = sum(x.codebook_loss for x in reconstruction.quantised)
        total = term + self.config.commitment_weight * commitment
        if self.config.codebook_update == "loss":
            total = total + codebook
        return Losses(total, term, commitment, codebook)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Encoder outputs, coarsest level first."""
        x = as_float(images, self.to_codes[0].weight.dtype).contiguous(memory_format=torch.channels_last)
        features = []
        for encode in reversed(self.encoders):
            x = encode(x)
            features.append(x)
        return features[::-1]


def as_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in [-1, 1], whether they come as uint8 or as floats already."""
    return to_float(images, dtype) if images.dtype == torch.uint8 else images.to(dtype)


def _join(x: Tensor, context: Tensor | None) -> Tensor:
    return x if context is None else torch.cat([x, context.to(x.dtype)], dim=1)
