"""The models of the family by name."""

from vqvae2.errors import UserError
from vqvae2.family.autoencoder import DeterministicAutoencoder
from vqvae2.family.beta_vae import BetaVAE
from vqvae2.family.cvae import CVAE
from vqvae2.family.delta_vae import DeltaVAE
from vqvae2.family.member import Member
from vqvae2.family.oi_vae import OIVAE
from vqvae2.family.pixelcnn import PixelCNN, PixelCNNDeltaVAE, PixelCNNVAE, PixelCNNVQVAE
from vqvae2.family.ppca import PPCA
from vqvae2.family.vae import VAE
from vqvae2.family.vae_gan import VAEGAN
from vqvae2.family.vqvae import VQVAE, VQVAE2

MEMBERS: dict[str, type[Member]] = {
    "autoencoder": DeterministicAutoencoder,
    "ppca": PPCA,
    "vae": VAE,
    "beta_vae": BetaVAE,
    "cvae": CVAE,
    "delta_vae": DeltaVAE,
    "vae_gan": VAEGAN,
    "oi_vae": OIVAE,
    "pixelcnn": PixelCNN,
    "pixelcnn_vae": PixelCNNVAE,
    "pixelcnn_delta_vae": PixelCNNDeltaVAE,
    "pixelcnn_vqvae": PixelCNNVQVAE,
    "vqvae": VQVAE,
    "vqvae2": VQVAE2,
}


def check_names(names: list[str], key: str) -> None:
    """Raise a UserError if a name is not that of a model, or there are none; `key` names the flag or the field."""
    unknown = [name for name in names if name not in MEMBERS]
    if unknown or not names:
        said = ", ".join(map(repr, unknown)) or "an empty list"
        raise UserError(f"{key}: {said} is not valid: use names from {', '.join(MEMBERS)}")
