"""Random numbers as a function of a key, so that no random state is saved for a resume or shared between processes."""

import hashlib

import torch


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed that is a pure function of `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose seed is a pure function of `key`."""
    return torch.Generator().manual_seed(derive_seed(*key))
