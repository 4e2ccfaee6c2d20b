"""Speed of a device: measured for cpu, else its peak times an assumed share."""

from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqvae2.benchmarks.prior import matrix_product
from vqvae2.benchmarks.timing import seconds_per_call, update
from vqvae2.planning.cost import AUTOCAST, TrainingCost
from vqvae2.planning.devices import Device
from vqvae2.planning.stages import Stage
from vqvae2.training.average import WeightAverage
from vqvae2.training.objective import optimiser_of
from vqvae2.training.optimiser import set_rate

ASSUMED_ON_GPU = {"stage 1": 0.15, "prior": 0.35}  # not measured: convolutions of 64 to 128 channels wait for memory
ASSUMED_ON_CPU = 0.6  # where one image is too much to measure; the low end of those in vqvae2/prior/README.md
MEASURED_OPERATIONS = 2e11  # at most, in a step that is timed: some seconds on two cores
MEASURED_PARAMETERS = 1e8
PRODUCT_SIDE = 2048
TIMED_STEPS = 5  # at least
TIMED_SECONDS = 4.0  # a shared machine can be faster for a second than it stays
CPU = torch.device("cpu")


class Speed(NamedTuple):
    """Speed of a stage.

    Attributes:
        peak: operations per second of large matrix products.
        share: share of it that a training step reaches.
        measured: whether the share was measured; else it is assumed.
        loading: seconds by which loading an image delays training, where both share the cores; else 0.
    """

    peak: float
    share: float
    measured: bool
    loading: float = 0.0

    @property
    def rate(self) -> float:
        """Operations per second of a training step."""
        return self.peak * self.share


def gpu_speed(stage: Stage, device: Device, precision: str) -> Speed:
    """The peak of a GPU with the assumed share."""
    peak = device.float32 if precision == "no" else device.bf16
    return Speed(peak * 1e12, ASSUMED_ON_GPU["stage 1" if stage.name == "stage 1" else "prior"], False)


def cpu_speed(stage: Stage, cost: TrainingCost, local_batch: int, precision: str) -> Speed:
    """Time a matrix product and a training step on random data, with fewer images if a step is long.

    Accelerate is not used, because it would choose the GPU of a machine that has one.
    """
    product = seconds_per_call({"product": matrix_product(CPU, precision, PRODUCT_SIDE)}, CPU, 3, warm_up_calls=1)
    peak = 2 * PRODUCT_SIDE**3 / product["product"]
    accumulation = stage.train.gradient_accumulation_steps
    images = min(local_batch, int(MEASURED_OPERATIONS * local_batch * accumulation / cost.step))
    if images < 1 or cost.num_parameters > MEASURED_PARAMETERS:
        return Speed(peak, ASSUMED_ON_CPU, False)
    module: nn.Module = stage.build(bool(stage.checkpointing))
    objective = stage.objective(module)
    optimiser = optimiser_of(objective, stage.train.optimizer, precision=precision)
    set_rate(optimiser, stage.train.learning_rate)
    batch, number, applied = stage.batch(images), objective.start_step or 0, torch.tensor(True)
    decay = stage.train.weight_average_decay
    average = WeightAverage(module, decay) if decay else None

    def reduce(tensor: Tensor) -> Tensor:
        return tensor

    def step() -> None:
        with torch.autocast("cpu", AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss = objective.loss(module, batch, number).total
        update(loss, module, optimiser)
        objective.end_step(number, applied, reduce)
        if average:
            average.update(number, applied)

    first = seconds_per_call({"step": step}, CPU, 1, warm_up_calls=1)["step"]
    repetitions = max(TIMED_STEPS, int(TIMED_SECONDS / first))
    seconds = seconds_per_call({"step": step}, CPU, repetitions, warm_up_calls=0, statistic=median)["step"]
    operations = stage.cost(images, 1, bool(stage.checkpointing), precision).step
    return Speed(peak, operations / seconds / peak, True)
