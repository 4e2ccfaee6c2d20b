"""How well a codebook is used, over a fixed window of images: metrics of one batch would depend on its size."""

from typing import NamedTuple

import torch
from torch import Tensor


class Usage(NamedTuple):
    """`usage`: share of codes that occur, 0 to 1. `perplexity`: exp of the entropy of their frequencies, 1 to K."""

    usage: float
    perplexity: float


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs in `codes` (any shape): (K,) int64."""
    return torch.bincount(codes.flatten(), minlength=codebook_size)


def usage_of(counts: Tensor) -> Usage:
    """Usage and perplexity of code counts (K,)."""
    counts = counts.cpu()  # where there is float64
    frequencies = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.xlogy(frequencies, frequencies).sum()
    return Usage((counts > 0).double().mean().item(), entropy.exp().item())
