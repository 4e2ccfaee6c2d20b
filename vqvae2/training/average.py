"""Exponential moving averages: a decay with warm-up, and averaged weights of a module (Polyak averaging)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vqvae2.training.sharding import WHOLE, Shard


def average_decay(decay: float, step: int) -> float:
    """Decay of a moving average at `step`; it rises to `decay`, so that the initial value is forgotten quickly."""
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """Moving average of a module's weights, without parameters that need no gradient, such as an EMA codebook.

    A process averages the parameters that it owns.
    """

    def __init__(self, module: nn.Module, decay: float, shard: Shard = WHOLE):
        self.decay = decay
        self.shard = shard
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.parameters = {name: p for name, p in self.trained.items() if shard.owns(name)}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int, applied: Tensor) -> None:
        """Update the averages with the weights after `step`, unless `applied` (bool scalar on the device) is false."""
        averages = list(self.averages.values())
        if not averages:  # a process that owns no parameter
            return
        moves = torch._foreach_sub([p.detach() for p in self.parameters.values()], averages)
        torch._foreach_mul_(moves, applied * (1 - average_decay(self.decay, step)))
        torch._foreach_add_(averages, moves)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context manager in which the module has the averaged weights; all processes enter it together."""
        self._swap()
        self.shard.share(dict(self.trained))
        try:
            yield
        finally:
            self._swap()
        self.shard.share(dict(self.trained))  # not after an error, which other processes may not have

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(held)

    def load(self, averages: dict[str, Tensor]) -> None:
        """Load saved averages."""
        for name, average in self.averages.items():
            average.copy_(averages[name])
