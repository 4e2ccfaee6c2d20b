"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for weight matrices, Adam for all other parameters."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 3  # with more, singular values are closer to 1, but priors learned less in the same time


# PyTorch keeps these methods out of compiled graphs by decorators that import torch._dynamo when they are first called,
# which takes two seconds of the start of every stage. No optimizer is compiled here.
_add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
_adam_step = inspect.unwrap(torch.optim.Adam.step)


class MuonAdam(torch.optim.Adam):
    """Fused Adam, with updates by Muon in the parameter groups whose `matrices` is 1 or more.

    Muon replaces the momentum of a matrix by the nearest matrix whose singular values are all equal, so that rare
    directions of the gradient move the weights as far as frequent ones. The kernel of a convolution is a matrix of its
    output channels x all other dimensions. Where `matrices` is N, the output channels are divided into N equal parts,
    such as the values and the gates of a gated layer, and each part is a matrix of its own. The products of Gram
    matrices, which take most of the time, grow with the cube of the number of rows: two halves take a quarter of it.
    The products run in the group's `dtype`; None: that of the weights.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Leave out Adam's conversion of what early versions of PyTorch saved: it expects Adam's state everywhere."""
        torch.optim.Optimizer.__setstate__(self, state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _add_param_group(self, param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters; like fused Adam, skip the update where the attribute `found_inf` is nonzero."""
        skip: Tensor | None = getattr(self, "found_inf", None)
        by_muon = [group for group in self.param_groups if group["matrices"]]
        by_shape: dict[tuple[int, int, torch.dtype | None], list[tuple[Tensor, Tensor, float, float]]] = {}
        for group in by_muon:
            for p in group["params"]:
                if p.grad is not None:
                    weight = (p, p.grad, group["lr"], group["weight_decay"])
                    shape = len(p) // group["matrices"], p.numel() // len(p), group["dtype"]
                    by_shape.setdefault(shape, []).append(weight)
                    p.grad = None  # Adam's step leaves out parameters without a gradient
        result = _adam_step(self, closure)
        for (rows, columns, dtype), same_shape in by_shape.items():
            # (N, rows, columns)
            directions = torch.cat(
                [self._direction(p, g, skip).reshape(-1, rows, columns) for p, g, _, _ in same_shape]
            )
            # as in Jordan et al., larger updates where there are more outputs than inputs
            updates = orthogonalise(directions.to(dtype or directions.dtype)) * max(1.0, rows / columns) ** 0.5
            if skip is not None:
                updates = updates * (skip == 0)
            parts = updates.split([p.numel() // (rows * columns) for p, _, _, _ in same_shape])
            for (p, _, rate, decay), update in zip(same_shape, parts, strict=True):
                if decay:  # decoupled: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"
                    p.mul_(1 - rate * decay if skip is None else 1 - rate * decay * (skip == 0))
                p.add_(update.reshape(p.shape).to(p.dtype), alpha=-rate)
        return result

    def _direction(self, p: Tensor, gradient: Tensor, skip: Tensor | None) -> Tensor:
        """Update the momentum of a matrix and return Nesterov's direction."""
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"]
        if skip is not None:  # where the update is skipped, keep the momentum
            gradient = torch.where(skip == 0, gradient, momentum)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Set the singular values of matrices (N, rows, columns) to about 1 by Newton-Schulz iterations.

    The coefficients are those of Jordan et al.: the iteration gives singular values between about 0.7 and 1.2. It needs
    singular values of at most 1, the larger the better: X is divided by the root of the Frobenius norm of its Gram
    matrix X X^T, which is less than the Frobenius norm of X by a factor of up to the fourth root of the number of rows.

    Each iteration multiplies X by a polynomial of its Gram matrix. All these factors commute, so their product is
    computed on the smaller of the two Gram matrices, and X is read twice instead of twice in every iteration. The
    rounding errors of small singular values grow by up to 12 in every iteration, which bf16 allows for three.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    gram = x @ x.mT
    scale = gram.norm(dim=(1, 2), keepdim=True).sqrt() + 1e-7
    gram = gram / scale.square()
    product = factor = _factor(gram)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = factor @ (factor @ gram)
        factor = _factor(gram)
        product = factor @ product
    x = (product / scale) @ x
    return x.mT if tall else x


def _factor(gram: Tensor) -> Tensor:
    """What one iteration multiplies X by: a I + b G + c G^2 of the Gram matrices G, (N, n, n)."""
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return torch.baddbmm(3.4445 * identity - 4.7750 * gram, gram, gram, alpha=2.0315)
