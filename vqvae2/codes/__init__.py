"""The codes of a set of images: the code store and the extraction of codes."""

from vqvae2.codes.store import CodeStore

__all__ = ["CodeStore"]
