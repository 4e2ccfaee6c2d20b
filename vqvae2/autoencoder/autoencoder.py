"""The hierarchical autoencoder of VQ-VAE-2, with any number of levels."""

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.autoencoder.blocks import ResidualBlock, decoder, encoder, inputs_per_output
from vqvae2.autoencoder.modules import module_list
from vqvae2.autoencoder.quantiser import Quantised, Quantiser
from vqvae2.config import AutoencoderConfig
from vqvae2.images.convert import to_float, to_uint8

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}
GAINS = {"relu": 2.0, "gelu": 2.5}  # initial variance of the weights times the number of inputs; gelu: by trial
FEATURE_SCALE = 0.3  # initial scale of the features, relative to the hidden activations
IMAGE_SCALE = 0.1  # initial scale of the decoded image, relative to the hidden activations
INPUTS_AT_RATE = 4096  # inputs per output at which the rate factor is 1; with 2048 and 1024, models learned more slowly
LARGEST_RATE_FACTOR = 8.0


class Reconstruction(NamedTuple):
    """Decoded images (B, C, H, W), approximately in [-1, 1], and the quantizer output of each level, coarsest first."""

    images: Tensor
    quantised: list[Quantised]


class Losses(NamedTuple):
    """The terms of the loss, each a mean over elements, and their weighted sum `total`."""

    total: Tensor
    reconstruction: Tensor
    commitment: Tensor
    codebook: Tensor


class Autoencoder(nn.Module):
    """The hierarchical VQ-VAE with one encoder, quantizer and decoder per level (Razavi et al. 2019, algorithm 1).

    The encoders run from the finest level to the coarsest, the quantizers and decoders from the coarsest to the
    finest. The decoder of a level receives the level's code vectors and the output of the next coarser decoder.
    Its output is concatenated with the features of the next finer level before that level is quantized. The
    finest decoder outputs the image. All lists are ordered coarsest level first.
    """

    def __init__(self, config: AutoencoderConfig, channels: int):
        """Build the autoencoder for images with `channels` channels."""
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

        activation = ACTIVATIONS[config.activation]
        self.encoders = module_list(
            encoder(n, *widths, ratio, activation) for n, ratio in zip(inputs, ratios, strict=True)
        )
        self.to_codes = module_list(
            nn.Conv2d(hidden + context, level.code_dim, 1) for level, context in zip(levels, contexts, strict=True)
        )
        self.quantisers = module_list(
            Quantiser(level.codebook_size, level.code_dim, learned=config.codebook_update == "loss") for level in levels
        )
        self.decoders = module_list(
            decoder(level.code_dim + context, *widths, ratio, out, activation)
            for level, context, ratio, out in zip(levels, contexts, ratios, outputs, strict=True)
        )
        self._initialise()
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialize as in He et al. 2015, which keeps the scale of the signal; residual blocks start as the identity.

        Initial features are small, so that the commitment loss does not dominate the reconstruction loss. The
        initial image is close to zero, the middle of its range.
        """
        gain = GAINS[self.config.activation]
        for convolution in self._convolutions():
            convolution.weight.normal_(std=math.sqrt(gain / inputs_per_output(convolution)))
            assert convolution.bias is not None
            convolution.bias.zero_()
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                block.merge.weight.zero_()
        for to_codes in self.to_codes:
            to_codes.weight.mul_(FEATURE_SCALE)
        last = self.decoders[-1][-1]
        assert isinstance(last, (nn.Conv2d, nn.ConvTranspose2d))
        last.weight.mul_(IMAGE_SCALE)

    def rate_factors(self) -> dict[nn.Parameter, float]:
        """Learning rate multiplier for the weight of each convolution.

        Adam changes every weight by about the learning rate, so the output of a layer changes by about the rate
        times the number of inputs. With one rate for all layers, those with few inputs would hardly learn
        (Yang et al. 2022, Tensor Programs V, table 3: the rate is proportional to 1 / inputs).
        """
        return {
            cast(nn.Parameter, x.weight): min(LARGEST_RATE_FACTOR, INPUTS_AT_RATE / inputs_per_output(x))
            for x in self._convolutions()
        }

    def _convolutions(self) -> Iterator[nn.Conv2d | nn.ConvTranspose2d]:
        return (x for x in self.modules() if isinstance(x, (nn.Conv2d, nn.ConvTranspose2d)))

    def forward(self, images: Tensor, shown_levels: Tensor | None = None, quantises: bool = True) -> Reconstruction:
        """Encode, quantize and decode images.

        Args:
            images: (B, C, H, W), uint8 or float in [-1, 1].
            shown_levels: (B,), number of levels of each image that the decoders receive, counted from the coarsest;
                None: all. Each position of a hidden level receives the mean vector of the level's codebook.
            quantises: whether to quantize; if False, the decoders receive the features themselves.
        """
        quantised: list[Quantised] = []
        context: Tensor | None = None
        for i, (features, to_codes, quantiser, decode) in enumerate(
            zip(self._features(images), self.to_codes, self.quantisers, self.decoders, strict=True)
        ):
            features = to_codes(_join(features, context))  # (B, D, h, w), the level's grid
            result = quantiser(features) if quantises else quantiser.pass_through(features)
            quantised.append(result)
            vectors = result.vectors  # (B, D, h, w)
            if shown_levels is not None:
                shown = (shown_levels > i).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
                vectors = torch.where(shown, vectors, quantiser.mean_vector().to(vectors.dtype))
            # (B, D, h, w) of the next finer level; finally (B, C, H, W)
            decoded = context = decode(_join(vectors, context))
        return Reconstruction(decoded, quantised)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images (B, C, H, W), uint8 or float in [-1, 1].

        Returns:
            Codes (B, H / stride, W / stride), int64, by level name.
        """
        codes: dict[str, Tensor] = {}
        context: Tensor | None = None
        for i, features in enumerate(self._features(images)):
            name, quantiser = self.names[i], self.quantisers[i]
            codes[name] = quantiser.encode(self.to_codes[i](_join(features, context)))
            if i + 1 < len(self.names):
                context = self.decoders[i](_join(quantiser.look_up(codes[name]), context))
        return codes

    def decode(self, codes: dict[str, Tensor]) -> Tensor:
        """Decode codes (B, H / stride, W / stride) by level name to uint8 images (B, C, H, W).

        A negative code is not known: its position receives the mean vector of the codebook. The finest levels may be
        omitted, as if none of their codes were known.
        """
        context: Tensor | None = None
        for name, quantiser, decode in zip(self.names, self.quantisers, self.decoders, strict=True):
            if name in codes:
                vectors = quantiser.look_up_known(codes[name])
            else:
                assert context is not None, "the codes of the coarsest level are required"
                batch, _, height, width = context.shape
                vectors = quantiser.mean_vector().expand(batch, -1, height, width)
            decoded = context = decode(_join(vectors, context))
        return to_uint8(decoded)

    def codebooks(self) -> dict[str, Tensor]:
        """The code vectors (K, D) of each level by name, float32."""
        return {name: x.codebook.detach().float() for name, x in zip(self.names, self.quantisers, strict=True)}

    def losses(self, images: Tensor, reconstruction: Reconstruction) -> Losses:
        """The loss of a reconstruction of `images` (Oord et al. 2017, equation 3).

        The commitment and codebook terms are summed over the levels.
        """
        distance = {"mse": F.mse_loss, "l1": F.l1_loss}[self.config.reconstruction_loss]
        decoded = reconstruction.images
        term = distance(decoded, as_float(images, decoded.dtype))
        commitment = cast(Tensor, sum(x.commitment_loss for x in reconstruction.quantised))
        codebook = cast(Tensor, sum(x.codebook_loss for x in reconstruction.quantised))
        total = term + self.config.commitment_weight * commitment
        if self.config.codebook_update == "loss":
            total = total + codebook
        return Losses(total, term, commitment, codebook)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Encoder outputs (B, hidden_channels, h, w) of each level, coarsest first."""
        x = as_float(images, self.to_codes[0].weight.dtype).contiguous(memory_format=torch.channels_last)
        features = []
        for encode in reversed(self.encoders):
            x = encode(x)
            features.append(x)
        return features[::-1]


def as_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert images to `dtype`: uint8 is scaled to [-1, 1], floats are expected to be in that range already."""
    return to_float(images, dtype) if images.dtype == torch.uint8 else images.to(dtype)


def _join(x: Tensor, context: Tensor | None) -> Tensor:
    return x if context is None else torch.cat([x, context.to(x.dtype)], dim=1)
