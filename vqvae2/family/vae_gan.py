"""The VAE-GAN (Larsen et al. 2016, arXiv 1512.09300, algorithm 1).

Reconstructions are compared in the features of a discriminator D instead of in pixels, and the discriminator tells
images from reconstructions and samples. With f the features of D, x' = decoder(z) for z ~ q(z|x), and
x_p = decoder(z_p) for z_p ~ p(z):

    encoder:        KL(q(z|x) || p(z)) + |f(x) - f(x')|^2 / 2
    decoder:        |f(x) - f(x')|^2 / 2 - a (log D(x') + log D(x_p))
    discriminator:  -log D(x) - log(1 - D(x')) - log(1 - D(x_p))

The weight a is 1 / gamma of the paper. The decoder's adversarial term is the non-saturating one of Goodfellow et al.
2014, where the paper has log(1 - D). Each part has its own loss; one backward pass computes all three gradients,
because what a loss must not train enters it detached.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.family.member import Bound, Setting
from vqvae2.family.trunk import Trunk
from vqvae2.family.vae import VAE
from vqvae2.images.convert import to_float
from vqvae2.images.loading import ImageBatch
from vqvae2.training.objective import Loss


class Judged(NamedTuple):
    """Output of the discriminator: features (B, F) and the logit that an image is real (B,), float32."""

    features: Tensor
    logits: Tensor


class Discriminator(nn.Module):
    """An encoder trunk with one output; the features are those of its convolutions."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.trunk = Trunk(setting, outputs=1)

    def forward(self, images: Tensor) -> Judged:
        """Judge images (B, C, H, W), float in [-1, 1]."""
        features = self.trunk.features(images)
        return Judged(features.float(), self.trunk.from_features(features).float()[:, 0])

    def detached(self, images: Tensor) -> Judged:
        """The same without a gradient for the discriminator's own parameters."""
        frozen = {name: p.detach() for name, p in self.named_parameters()}
        return torch.func.functional_call(self, frozen, (images,))


class VAEGAN(VAE):
    """A VAE whose reconstruction loss is in the features of a discriminator."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.discriminator = Discriminator(setting)
        self.pixels.requires_grad_(False)  # there is no likelihood of pixels whose variance could be learned

    def forward(self, batch: ImageBatch, step: int) -> Loss:
        real = to_float(batch.images)
        posterior = self.posterior(batch.images, batch.labels)
        z = posterior.draw(self.noise("posterior", batch, step, self.latent_dim))
        from_prior = self.noise("prior", batch, step, self.latent_dim)
        rate = self.rate(posterior, batch.labels).mean()

        # encoder and decoder: reconstruction in the features
        reconstructed = self._generate(z)
        differences = self.discriminator.detached(reconstructed).features
        differences = differences - self.discriminator.detached(real).features.detach()
        reconstruction = 0.5 * differences.square().sum(1).mean()

        # decoder alone: generated images are to look real
        generated = self._generate(torch.cat([z.detach(), from_prior]))  # (2 B, C, H, W)
        deception = 2 * F.softplus(-self.discriminator.detached(generated).logits).mean()

        # discriminator alone: tell real from generated
        logits = self.discriminator(torch.cat([real, generated.detach()])).logits
        judged_real, judged_generated = logits.split([len(real), len(generated)])
        detection = F.softplus(-judged_real).mean() + 2 * F.softplus(judged_generated).mean()

        total = rate + reconstruction + self.setting.config.adversarial_weight * deception + detection
        parts = {"rate": rate, "features": reconstruction, "deception": deception, "detection": detection}
        return Loss(total, {name: value.detach() for name, value in parts.items()})

    def _generate(self, z: Tensor) -> Tensor:
        """Images of latents (B, D), float (B, C, H, W) in [-1, 1]."""
        return self.pixels.expected(self.decoder.decode(z))

    def bound(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Bound:
        return Bound(self.rate(self.posterior(images, labels), labels), None)

    def nll(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        return None

    def exchange_loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        return None
