"""The weights of the best validation so far, which are exported at the end of a stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqvae2.training.sharding import WHOLE, Shard


class Best(NamedTuple):
    """The best validation so far.

    Attributes:
        step: its step.
        value: value of the metric that decides; lower is better.
        weights: weights of the module that were validated, averaged if the configuration asks for it; of a sharded
            optimizer, those that this process owns.
    """

    step: int
    value: float
    weights: dict[str, Tensor]

    @contextmanager
    def swapped_in(self, module: nn.Module, shard: Shard = WHOLE) -> Iterator[None]:
        """Context manager in which the module has the best weights; all processes enter it together."""
        held = _owned(module, shard)
        _load(module, self.weights)
        shard.share(module.state_dict())
        try:
            yield
        finally:
            _load(module, held)
        shard.share(module.state_dict())  # not after an error, which other processes may not have

    def state(self) -> dict[str, Tensor]:
        """Tensors to save in a checkpoint."""
        numbers = {"step": torch.tensor(self.step), "value": torch.tensor(self.value, dtype=torch.float64)}
        return {**numbers, **{f"weights.{name}": x for name, x in self.weights.items()}}


def best_of_state(state: dict[str, Tensor], shard: Shard = WHOLE) -> Best | None:
    """What `Best.state` returned, or None if the checkpoint is of an earlier version and has no such state.

    The weights are copied, since those of a loaded checkpoint are read from its files, which are deleted later.
    """
    if not state:
        return None
    weights = {name.removeprefix("weights."): x for name, x in state.items() if name.startswith("weights.")}
    owned = {name: x.clone() for name, x in weights.items() if shard.owns(name)}
    return Best(int(state["step"]), float(state["value"]), owned)


def better(best: Best | None, step: int, value: float, module: nn.Module, shard: Shard = WHOLE) -> Best:
    """The better one of `best` and the present weights of the module, which were validated with `value`."""
    if best is not None and not value < best.value:
        return best
    return Best(step, value, _owned(module, shard))


def _owned(module: nn.Module, shard: Shard) -> dict[str, Tensor]:
    """Copies of the weights that this process owns."""
    return {name: x.detach().clone() for name, x in module.state_dict().items() if shard.owns(name)}


def _load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set some of the weights."""
    state = module.state_dict()
    for name, x in weights.items():
        state[name].copy_(x)


def overfitting(
    best: Best, step: int, held_out: dict[str, float], training: dict[str, float], name: str | None
) -> str | None:
    """A message with both losses if the metric `name` falls on training data but no longer on held-out data."""
    if name is None or name not in training or not training[name] < best.value < held_out[name]:
        return None
    return (
        f"overfitting: {name} is {training[name]:.4g} in training but {held_out[name]:.4g} on held-out images, where "
        f"{best.value:.4g} at step {best.step} was better: the weights of step {best.step} would be exported; use more "
        "images, dropout, copies (images.horizontal_flip, stage2.flipped_copies, stage2.cropped_copies) or fewer steps"
    )
