"""VQ-VAE-2 (Razavi, van den Oord, Vinyals 2019) as a pipeline of stages."""

from typing import TYPE_CHECKING, Any

from vqvae2.errors import UserError

if TYPE_CHECKING:
    from vqvae2.generation.generator import Generator

__all__ = ["Generator", "UserError"]


def __getattr__(name: str) -> Any:
    """Import `Generator`, and with it PyTorch, on first access, so that --help does not wait for PyTorch."""
    if name == "Generator":
        from vqvae2.generation.generator import Generator

        return Generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
