"""Gated PixelCNN (Oord et al. 2016, arXiv 1606.05328) as a model alone and as the decoder of latents.

The decoder is the project's prior with a pixel in the place of a code. A picture made from the latents by the trunk,
or by the decoder of VQ-VAE, is the condition of every layer:

    p(x | z) = product over positions i of p(x_i | x_1 ... x_(i-1), picture(z))

A decoder that predicts a pixel well from those before it gains little from the latents, and the KL of a VAE then falls
to about zero (Chen et al. 2017, arXiv 1611.02731). A smallest rate (delta-VAE) and codes are the two cures to compare.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae2.autoencoder.objective import AutoencoderObjective
from vqvae2.config import AutoencoderConfig, LevelGrid, PriorConfig
from vqvae2.errors import UserError
from vqvae2.family.delta_vae import DeltaVAE
from vqvae2.family.member import Bound, Member, Setting
from vqvae2.family.vae import VAE
from vqvae2.family.vqvae import VQVAE, LikelihoodAutoencoder
from vqvae2.images.loading import ImageBatch
from vqvae2.prior.likelihood import nll_of
from vqvae2.prior.prior import Prior
from vqvae2.prior.sampling import sample_codes
from vqvae2.training.objective import Loss

PICTURE = "picture"


class CausalDecoder(Prior):
    """The distribution of the pixels of grayscale images, given those before them and a picture, if `conditioned`."""

    def __init__(self, setting: Setting, conditioned: bool):
        if setting.channels != 1:
            raise UserError(f"images.channels: {setting.channels} is not valid for a PixelCNN: use 1")
        config = setting.config
        sizes = PriorConfig(
            hidden_channels=config.causal_channels,
            residual_channels=config.causal_channels,
            layers=config.causal_layers,
            kernel_size=config.causal_kernel_size,
            dropout=0.0,
        )
        values = 2 if setting.observation == "bernoulli" else 256
        # with a class, all layers receive a condition; the picture takes the place of its embedding
        super().__init__(sizes, LevelGrid("pixels", *setting.height_width, values), [], num_classes=int(conditioned))
        self.label = None
        self.picture = nn.Linear(1, config.causal_channels) if conditioned else None

    def condition(self, batch: int, coarser: dict[str, Tensor] | None, labels: Tensor | None) -> Tensor | None:
        """The embedded picture (B, H, W, channels)."""
        if self.picture is None or coarser is None:
            return None
        return self.picture(rearrange(coarser[PICTURE], "b c h w -> b h w c"))

    def nats(self, images: Tensor, picture: Tensor | None) -> Tensor:
        """-log p(x | picture) of uint8 images (B, 1, H, W) in nats per image, (B,)."""
        codes = torch.div(images[:, 0], 256 // self.grid.codebook_size, rounding_mode="floor").long()  # (B, H, W)
        logits = self(codes, _as_condition(picture))  # (B, values, H, W)
        return nll_of(logits, codes).sum(dim=(1, 2))

    def draw(self, num: int, picture: Tensor | None, generator: torch.Generator) -> Tensor:
        """Draw `num` images, uint8 (num, 1, H, W), the i-th given the i-th picture."""
        uniforms = torch.rand(num, self.grid.height * self.grid.width, dtype=torch.float64, generator=generator)
        on_device = uniforms.to(self.row_position.device)
        codes = sample_codes(self, on_device, _as_condition(picture))
        return (codes * (255 // (self.grid.codebook_size - 1))).to(torch.uint8)[:, None]


def _as_condition(picture: Tensor | None) -> dict[str, Tensor] | None:
    return None if picture is None else {PICTURE: picture}


class PixelCNN(Member):
    """A gated PixelCNN without latents: its distortion is the exact -log p(x), its rate is 0."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.causal = CausalDecoder(setting, conditioned=False)

    def forward(self, batch: ImageBatch, step: int) -> Loss:
        nats = self.causal.nats(batch.images, None).mean()
        return Loss(nats, {"distortion": nats.detach()})

    def bound(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Bound:
        nats = self.causal.nats(images, None)
        return Bound(torch.zeros_like(nats), nats)

    def sample(self, num: int, labels: Tensor, generator: torch.Generator) -> Tensor:
        return self.causal.draw(num, None, generator)


class PixelCNNVAE(VAE):
    """The VAE with the causal decoder after its own."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        del self.pixels  # the causal decoder replaces it
        self.causal = CausalDecoder(setting, conditioned=True)

    def distortion(self, images: Tensor, z: Tensor, labels: Tensor) -> Tensor:
        return self.causal.nats(images, self.decoder.decode(z, labels))

    def decode(self, z: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Samples of p(x|z), uint8 (B, C, H, W)."""
        return self.causal.draw(len(z), self.decoder.decode(z, labels), generator)


class PixelCNNDeltaVAE(PixelCNNVAE, DeltaVAE):
    """The delta-VAE with the causal decoder after its own."""


class CausalAutoencoder(LikelihoodAutoencoder):
    """VQ-VAE's autoencoder whose output is the picture that the causal decoder receives."""

    def __init__(self, config: AutoencoderConfig, setting: Setting):
        super().__init__(config, setting.channels)
        self.causal = CausalDecoder(setting, conditioned=True)

    def nats(self, images: Tensor, means: Tensor) -> Tensor:
        return self.causal.nats(images, means)


class PixelCNNVQVAE(VQVAE):
    """VQ-VAE with the causal decoder after its own."""

    autoencoder: CausalAutoencoder

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.autoencoder = CausalAutoencoder(self.autoencoder.config, setting)
        self.objective = AutoencoderObjective(
            self.autoencoder, setting.train.batch_size, setting.train.total_steps, setting.seed
        )

    def reconstruct(self, images: Tensor, labels: Tensor) -> Tensor:
        picture = self.autoencoder(images).images
        return self.autoencoder.causal.draw(len(images), picture, torch.Generator().manual_seed(0))

    def sample(self, num: int, labels: Tensor, generator: torch.Generator) -> Tensor:
        (grid,) = self.grids
        uniforms = torch.rand(num, grid.height * grid.width, dtype=torch.float64, generator=generator)
        codes = sample_codes(self.priors[grid.name], uniforms.to(labels.device))
        picture = self.autoencoder.decoders[0](self.autoencoder.quantisers[0].look_up(codes))
        return self.autoencoder.causal.draw(num, picture, generator)
