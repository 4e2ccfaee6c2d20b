"""Codebook usage and perplexity.

Both are measured over a fixed set of images, because the values of a single batch depend on the batch size.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Usage(NamedTuple):
    """Usage metrics of a codebook.

    Attributes:
        usage: share of the K codes that occur, 0 to 1.
        perplexity: exponential of the entropy of the code frequencies, 1 to K.
    """

    usage: float
    perplexity: float


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """Number of times each code occurs in `codes` (any shape): (K,) int64."""
    return torch.bincount(codes.flatten(), minlength=codebook_size)


def usage_of(counts: Tensor) -> Usage:
    """Usage and perplexity for code counts (K,)."""
    counts = counts.cpu()  # not all devices support float64
    frequencies = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.xlogy(frequencies, frequencies).sum()
    return Usage((counts > 0).double().mean().item(), entropy.exp().item())
