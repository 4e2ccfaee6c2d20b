"""What the training loop knows of a model: a module, its loss on a batch, and what is done once a step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vqvae2.run.seeding import keyed_generator
from vqvae2.training.optimiser import DEFAULT_BETAS

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over the processes


class Loss(NamedTuple):
    """The loss to be minimised, with its graph, and named metrics to be logged, without."""

    total: Tensor
    metrics: dict[str, Tensor]


class Objective(Protocol):
    """What the training loop knows of a stage. Batches are NamedTuples of tensors, on the device."""

    module: nn.Module
    rate_factors: dict[nn.Parameter, float]
    betas: tuple[float, float]
    start_step: int | None

    def start(self, batches: Iterator[list[Any]], reduce: Reduce) -> None:
        """Before the step `start_step`, unless that is None: set what starts from data.

        `batches` are this process's parts of global batches.
        """

    def loss(self, model: nn.Module, batch: Any, step: int) -> Loss:
        """The loss on one part of a batch; `model` is `module`, wrapped for several processes."""

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        """After the optimiser's update; `applied` (bool scalar on the device) is false where it was left out."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold besides the module and the optimiser."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up `state` again."""


class WeightsObjective:
    """What all objectives share that train a module's weights at one rate, and nothing else."""

    betas = DEFAULT_BETAS

    def __init__(self, module: nn.Module, batch_size: int, seed: int):
        """`batch_size`: of the global batch."""
        self.module = module
        self.rate_factors: dict[nn.Parameter, float] = {}
        self.start_step = None
        self.batch_size = batch_size
        self.seed = seed

    def start(self, batches: Iterator[list[Any]], reduce: Reduce) -> None:
        """Nothing starts from data."""

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        """Nothing moves but the weights."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """There is none."""

    def uniforms(self, purpose: str, batch_indices: Tensor, step: int) -> Tensor:
        """A number in [0, 1) for each place in the global batch, by (seed, purpose, step, place) alone."""
        drawn = torch.rand(self.batch_size, generator=keyed_generator(self.seed, purpose, step))
        return drawn.to(batch_indices.device)[batch_indices]
