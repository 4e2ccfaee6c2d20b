"""Memory and operations of a training step and of encoding, with fake tensors: nothing is computed or allocated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.benchmarks.operations import OperationCounter
from vqvae2.config import TrainConfig
from vqvae2.planning.fake import LiveBytes, replace_tensors
from vqvae2.training.average import WeightAverage
from vqvae2.training.best import better
from vqvae2.training.objective import Objective, optimiser_of
from vqvae2.training.optimiser import optimiser_state, set_rate
from vqvae2.training.sharding import owners_of

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class State(NamedTuple):
    """Bytes that one process keeps from step to step, and that shard_optimizer shares among processes."""

    optimiser: int
    average: int
    best: int


class TrainingCost(NamedTuple):
    """Memory of one process in bytes, and operations.

    Attributes:
        num_parameters: number of parameters.
        parameters, gradients, optimiser, average, best: bytes of each.
        activations: bytes at the end of the forward pass in addition to those before it.
        peak: largest number of bytes of a step. It can be less than the sum, since gradients grow while activations are
            freed, or more, since the backward pass has temporary tensors.
        share: optimizer state, averages and best weights of the process that keeps most of them, if they are sharded.
        forward: operations of one forward pass.
        step: operations of an optimizer step, with all accumulation steps.
        checkpoint: bytes of a checkpoint.
        model: bytes of model.safetensors.
    """

    num_parameters: int
    parameters: int
    gradients: int
    optimiser: int
    average: int
    best: int
    activations: int
    peak: int
    share: State
    forward: int
    step: int
    checkpoint: int
    model: int

    def sharded(self) -> "TrainingCost":
        """The cost with shard_optimizer. The optimizer's temporary tensors are not counted as smaller."""
        saved = self.optimiser + self.average + self.best - sum(self.share)
        return self._replace(peak=self.peak - saved, **self.share._asdict())


def training_cost(
    module: nn.Module,
    objective_of: Callable[[Any], Objective],
    batch_of: Callable[[], Any],
    train: TrainConfig,
    precision: str,
    processes: int = 1,
) -> TrainingCost:
    """The cost of a training step like that of the training loop, without sharding.

    Args:
        module: result of `without_memory`.
        objective_of: makes the objective of the module.
        batch_of: makes the batch of one process and one accumulation step.
        train: optimizer, accumulation and averages.
        precision: no, bf16 or fp16. Autocast follows its rules for CPUs, which are nearly those for GPUs here.
        processes: number of processes, on which `share` depends.
    """
    with FakeTensorMode(), LiveBytes() as live:
        replace_tensors(module)
        objective = objective_of(module)
        optimiser = optimiser_of(objective, train.optimizer, precision=precision)
        set_rate(optimiser, train.learning_rate)
        trained = [p for p in module.parameters() if p.requires_grad]
        _set_gradients(trained)
        optimiser.step()  # the first update creates the optimizer's state
        optimiser.zero_grad()
        average = WeightAverage(module, train.weight_average_decay) if train.weight_average_decay else None
        best = better(None, 0, 0.0, module) if objective.validated_by else None
        batch, applied, step = batch_of(), torch.tensor(True), objective.start_step or 0
        # of the accumulation step before; among several processes, DistributedDataParallel always keeps them
        if train.gradient_accumulation_steps > 1 or processes > 1:
            _set_gradients(trained)
        before = live.peak = live.now

        with OperationCounter() as counter:
            with torch.autocast("cpu", AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                total = objective.loss(module, batch, step).total
            activations, forward = live.now - before, counter.total
            total.backward()
            del total
        passes = counter.total
        nn.utils.clip_grad_norm_(trained, train.gradient_clip or float("inf"))
        with OperationCounter() as counter:  # Muon's matrix products
            optimiser.step()
        optimiser.zero_grad()
        objective.end_step(step, applied, lambda tensor: tensor)
        if average:
            average.update(step, applied)
        rest = counter.total

        state = optimiser_state(optimiser, module)
        averages = average.averages if average else {}
        copies = best.state() if best else {}
        groups = (module.state_dict(), state, objective.state(), averages, copies)
        return TrainingCost(
            num_parameters=sum(p.numel() for p in module.parameters()),
            parameters=_bytes(module.parameters()),
            gradients=_bytes(trained),
            optimiser=_bytes(state.values()),
            average=_bytes(averages.values()),
            best=_bytes(copies.values()),
            activations=activations,
            peak=live.peak,
            share=_largest_share(module, processes, state, averages, best.weights if best else {}),
            forward=forward,
            step=passes * train.gradient_accumulation_steps + rest,
            checkpoint=sum(_bytes(group.values()) for group in groups),
            model=_bytes(module.state_dict().values()),
        )


class EncodingCost(NamedTuple):
    """Peak bytes and operations of encoding one batch."""

    peak: int
    operations: int


def encoding_cost(autoencoder: Autoencoder, images: Callable[[], Tensor], precision: str) -> EncodingCost:
    """The cost of encoding the images of one process in one batch; `autoencoder` is a result of `without_memory`."""
    with FakeTensorMode(), LiveBytes() as live, torch.no_grad(), OperationCounter() as counter:
        replace_tensors(autoencoder)
        with torch.autocast("cpu", AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            autoencoder.encode(images())
        return EncodingCost(live.peak, counter.total)


def _largest_share(module: nn.Module, processes: int, *states: dict[str, Tensor]) -> State:
    """What the process with most bytes keeps of optimizer state (by NAME.KEY), averages and best weights (by NAME)."""
    owners = owners_of(module, processes)
    shares = [[0] * len(states) for _ in range(processes)]
    for i, tensors in enumerate(states):
        for name, x in tensors.items():
            owner = owners.get(name, owners.get(name.rpartition(".")[0], 0))
            shares[owner][i] += _bytes([x])
    return State(*max(shares, key=sum))


def _set_gradients(parameters: list[nn.Parameter]) -> None:
    for p in parameters:
        p.grad = torch.empty_like(p)


def _bytes(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
