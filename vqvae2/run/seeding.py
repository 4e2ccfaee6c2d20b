"""Random numbers that depend on a key alone, so that nothing is carried over a resume or between processes."""

import hashlib

import torch


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed that is a pure function of `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator that is a pure function of `key`."""
    return torch.Generator().manual_seed(derive_seed(*key))
