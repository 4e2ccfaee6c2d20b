"""The codes of a set of images: their store, and how they are extracted."""

from vqvae2.codes.store import CodeStore

__all__ = ["CodeStore"]
