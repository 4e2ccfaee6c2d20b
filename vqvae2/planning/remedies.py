"""What to change where a stage does not fit into the memory of a device."""

from typing import NamedTuple

from vqvae2.planning.cost import TrainingCost
from vqvae2.planning.stages import Stage


class Fit(NamedTuple):
    """The smallest number of accumulation steps with which a step fits, and at most so many bytes."""

    accumulation: int
    local_batch: int
    checkpointing: bool
    peak: float


def remedy(stage: Stage, costs: dict[bool, TrainingCost], local_batch: int, precision: str, limit: float) -> str:
    """One line that says what to change.

    Args:
        stage: the stage.
        costs: cost of a step without and, where there is such a field, with activation checkpointing.
        local_batch: images of one process in one pass.
        precision: no, bf16 or fp16.
        limit: bytes that can be used.
    """
    prior = stage.key.removesuffix(".train")
    fits = [fit for x, cost in costs.items() if (fit := _fit(stage, x, cost, local_batch, precision, limit))]
    if not fits:
        return f"{stage.name}: does not fit with one image at a time: use a GPU with more memory or a smaller model"
    lines = []
    for fit in fits:
        flags = ""
        if fit.accumulation != stage.train.gradient_accumulation_steps:
            flags += f" --{stage.key}.gradient_accumulation_steps {fit.accumulation}"
        if fit.checkpointing != bool(stage.checkpointing):
            flags += f" --{prior}.activation_checkpointing {str(fit.checkpointing).lower()}"
        lines.append(f"{flags[1:]} (batch {fit.local_batch}, at most {fit.peak / 2**30:.1f} GiB)")
    return f"{stage.name}: " + ", or ".join(lines)


def _fit(
    stage: Stage, checkpointing: bool, cost: TrainingCost, local_batch: int, precision: str, limit: float
) -> Fit | None:
    """The fit with the fewest accumulation steps.

    At each moment the memory is linear in the batch, so its peak is convex in it, and a line through the peaks of
    two batches is not below the peaks between them.
    """
    now = stage.train.gradient_accumulation_steps
    if cost.peak <= limit:
        return Fit(now, local_batch, checkpointing, cost.peak)
    smallest = stage.cost(1, 2, checkpointing, precision).peak
    largest = cost.peak + cost.gradients  # those of the accumulation step before
    for factor in (x for x in range(2, local_batch + 1) if local_batch % x == 0):
        batch = local_batch // factor
        peak = smallest + (largest - smallest) * (batch - 1) / max(1, local_batch - 1)
        if peak <= limit:
            return Fit(now * factor, batch, checkpointing, peak)
    return None
