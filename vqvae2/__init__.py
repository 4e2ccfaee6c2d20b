"""VQ-VAE-2 (Razavi, van den Oord, Vinyals 2019) in stages."""

from vqvae2.errors import UserError
from vqvae2.generator import Generator

__all__ = ["Generator", "UserError"]
