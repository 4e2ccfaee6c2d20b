"""VQ-VAE-2 (Razavi, van den Oord, Vinyals 2019) in stages."""

from typing import TYPE_CHECKING, Any

from vqvae2.errors import UserError

if TYPE_CHECKING:
    from vqvae2.generation.generator import Generator

__all__ = ["Generator", "UserError"]


def __getattr__(name: str) -> Any:
    """Import `Generator`, and with it PyTorch, when it is first asked for: --help does not wait for it."""
    if name == "Generator":
        from vqvae2.generation.generator import Generator

        return Generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
