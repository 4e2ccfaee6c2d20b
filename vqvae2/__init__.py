"""VQ-VAE-2 (Razavi, van den Oord, Vinyals 2019) in stages."""

from vqvae2 import stopping  # noqa: F401 - notes the parent process before PyTorch takes its seconds
from vqvae2.errors import UserError
from vqvae2.generator import Generator

__all__ = ["Generator", "UserError"]
