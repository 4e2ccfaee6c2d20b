"""The beta-VAE (Higgins et al. 2017, "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational
Framework", equation 4).

The loss is distortion + beta * rate. With beta above 1 the posterior is pulled closer to the prior than in a VAE:
fewer latents stay active, and reconstructions lose detail. With beta = 1 it is the VAE.
"""

from vqvae2.family.member import Setting
from vqvae2.family.vae import VAE


class BetaVAE(VAE):
    """A VAE whose rate has the weight `members.beta` in the loss, but not in the bound."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.rate_weight = setting.config.beta
