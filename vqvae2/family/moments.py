"""Mean and covariance of vectors that arrive in batches, over all processes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from vqvae2.run.precision import widest_float
from vqvae2.training.objective import Reduce


def mean_and_covariance(batches: Iterable[Tensor], like: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by N, of all vectors.

    Args:
        batches: this process's vectors, (B, D) each; lazy.
        like: a tensor (D,) on the device to compute on.
        reduce: sums a tensor over all processes.
    """
    wide, dimensions = widest_float(like.device), len(like)
    # sums of 1, x and x x^T, as one matrix of (1, x) (1, x)^T
    sums = torch.zeros(1 + dimensions, 1 + dimensions, dtype=wide, device=like.device)
    for vectors in batches:
        x = vectors.to(wide)
        x = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        sums += x.T @ x
    means = reduce(sums)
    means = means / means[0, 0]
    return means[0, 1:], means[1:, 1:] - means[0, 1:].outer(means[0, 1:])
