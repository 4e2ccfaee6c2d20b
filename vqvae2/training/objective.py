"""The interface between the training loop and a model: module, loss of a batch, and updates after each step."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vqvae2.run.seeding import keyed_generator
from vqvae2.training.muon import MuonAdam
from vqvae2.training.optimiser import DEFAULT_BETAS, build_optimiser
from vqvae2.training.sharding import WHOLE, Shard

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over all processes
M = TypeVar("M", bound=nn.Module)


class Loss(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: the loss to minimize, with its graph.
        metrics: metrics to log by name, detached.
    """

    total: Tensor
    metrics: dict[str, Tensor]


class Objective(Protocol):
    """What a stage must provide to the training loop. Batches are NamedTuples of tensors on the device.

    Attributes:
        module: the module to train.
        rate_factors: Adam's learning rate multipliers, for the parameters whose multiplier is not 1.
        matrices: weights of linear and convolution layers, which Muon updates if the configuration asks for it, and the
            number of matrices that the outputs of each are divided into.
        betas: Adam's betas.
        start_step: step before which `start` is called; None: never.
        validated_by: the validation metric, lower is better, whose best weights are exported; None: the last weights.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def rate_factors(self) -> dict[nn.Parameter, float]: ...

    @property
    def matrices(self) -> Mapping[nn.Parameter, int]: ...

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def start_step(self) -> int | None: ...

    @property
    def validated_by(self) -> str | None: ...

    def start(self, batches: Iterator[list[Any]], reduce: Reduce) -> None:
        """Initialize from data, such as codebooks; called before the step `start_step`, unless that is None.

        Args:
            batches: this process's parts of the global batches from `start_step` on.
            reduce: sums a tensor over all processes.
        """

    def loss(self, model: nn.Module, batch: Any, step: int) -> Loss:
        """The loss of one part of a batch; `model` is `module`, wrapped by the accelerator."""

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        """Called after the optimizer's update; `applied` (bool scalar on the device) is false if it was skipped."""

    def state(self) -> dict[str, Tensor]:
        """Tensors to save in a checkpoint in addition to the module and the optimizer."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""


class WeightsObjective(Generic[M]):
    """Base class of objectives that train all weights at one learning rate and have no other state."""

    betas = DEFAULT_BETAS
    validated_by: str | None = None

    def __init__(self, module: M, batch_size: int, seed: int):
        """Set up for `module` and a global batch of `batch_size` images."""
        self.module = module
        self.rate_factors: dict[nn.Parameter, float] = {}
        self.matrices: Mapping[nn.Parameter, int] = {}
        self.start_step: int | None = None
        self.batch_size = batch_size
        self.seed = seed

    def start(self, batches: Iterator[list[Any]], reduce: Reduce) -> None:
        """Do nothing: nothing is initialized from data."""

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        """Do nothing: only the optimizer changes the weights."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Do nothing: there is no state."""

    def uniforms(self, purpose: str, batch_indices: Tensor, step: int) -> Tensor:
        """Draw a number in [0, 1) for each batch index, (B,), a function of (seed, purpose, step, batch index) only."""
        drawn = torch.rand(self.batch_size, generator=keyed_generator(self.seed, purpose, step))
        return drawn.to(batch_indices.device)[batch_indices]


def optimiser_of(
    objective: Objective, optimizer: str, shard: Shard = WHOLE, weight_decay: float = 0.0, precision: str = "no"
) -> MuonAdam:
    """The optimizer of the parameters that this process owns.

    Args:
        objective: what is trained.
        optimizer: the configuration's, adam or muon.
        shard: the parameters that this process updates.
        weight_decay: the configuration's.
        precision: that of the forward pass, no, bf16 or fp16. With bf16, Muon's matrix products are in bf16, too.
    """
    matrices = objective.matrices if optimizer == "muon" else None
    dtype = torch.bfloat16 if precision == "bf16" else None
    module, factors = objective.module, objective.rate_factors
    return build_optimiser(module, factors, objective.betas, matrices, shard, weight_decay, dtype)
