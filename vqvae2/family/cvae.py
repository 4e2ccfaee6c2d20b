"""The conditional VAE (Sohn, Lee and Yan 2015, "Learning Structured Output Representation using Deep Conditional
Generative Models", equation 4), with the class as condition and the image as output.

    -log p(x|y) <= E_q(z|x,y)[-log p(x|z,y)] + KL(q(z|x,y) || p(z|y))

The bound is on -log p(x|y), not on -log p(x). The latents do not have to hold the class.
"""

import torch
from torch import Tensor, nn

from vqvae2.errors import UserError
from vqvae2.family.member import Setting
from vqvae2.family.vae import VAE, Gaussian


class CVAE(VAE):
    """A VAE whose encoder and decoder receive the label, and with `members.conditional_prior` the prior, too."""

    conditional = True

    def __init__(self, setting: Setting):
        if setting.num_classes == 0:
            raise UserError("models: cvae needs images with classes, and these have none: remove it")
        super().__init__(setting)
        self.label_prior: nn.Embedding | None = None
        if setting.config.conditional_prior:
            self.label_prior = nn.Embedding(setting.num_classes, 2 * self.latent_dim)
            nn.init.zeros_(self.label_prior.weight)  # N(0, 1) for every class before training

    def prior(self, like: Tensor, labels: Tensor) -> Gaussian:
        if self.label_prior is None:
            return super().prior(like, labels)
        mean, log_deviation = torch.chunk(self.label_prior(labels).to(like.dtype), 2, dim=1)
        return Gaussian(mean, log_deviation)
