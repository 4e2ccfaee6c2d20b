"""What to change where a stage does not fit into the memory of a device."""

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from vqvae2.planning.cost import TrainingCost
from vqvae2.planning.stages import Stage

TOO_LARGE = "use a GPU with more memory or a smaller model"


class Fit(NamedTuple):
    """The smallest number of accumulation steps with which a step fits, and at most so many bytes."""

    accumulation: int
    local_batch: int
    checkpointing: bool
    sharded: bool
    peak: float


def remedy(
    stage: Stage, costs: dict[bool, TrainingCost], local_batch: int, precision: str, limit: float, processes: int = 1
) -> str:
    """One line that says what to change.

    Args:
        stage: the stage.
        costs: cost of a step without and, where there is such a field, with activation checkpointing; not sharded.
        local_batch: images of one process in one pass.
        precision: no, bf16 or fp16.
        limit: bytes that can be used.
        processes: number of processes, over which optimizer state, averages and best weights can be sharded.
    """
    fits = [fit for x in costs for fit in _fits(stage, x, costs[x], local_batch, precision, limit, processes)]
    if not fits:
        sharded = ", with shard_optimizer" if processes > 1 else ""
        return f"{stage.name}: does not fit with one image at a time{sharded}: {TOO_LARGE}"
    return f"{stage.name}: " + ", or ".join(_describe(stage, fit) for fit in fits)


def encoding_remedy(peak: Callable[[int], int], local_batch: int, limit: float, processes: int) -> str:
    """One line that names the largest batch size with which stage 2 fits.

    Args:
        peak: bytes of one process that encodes a number of images in one pass; more images take more.
        local_batch: images of one process in one pass, which do not fit.
        limit: bytes that can be used.
        processes: number of processes, which have to divide the batch size.
    """
    largest = bisect_right(range(1, local_batch), limit, key=peak)
    if largest == 0:
        return f"stage 2: does not fit with one image at a time: {TOO_LARGE}"
    return f"stage 2: --stage2.batch_size {largest * processes} (batch {largest}, {peak(largest) / 2**30:.1f} GiB)"


def _describe(stage: Stage, fit: Fit) -> str:
    flags = []
    if fit.accumulation != stage.train.gradient_accumulation_steps:
        flags.append(f"--{stage.key}.gradient_accumulation_steps {fit.accumulation}")
    if fit.checkpointing != bool(stage.checkpointing):
        prior = stage.key.removesuffix(".train")
        flags.append(f"--{prior}.activation_checkpointing {str(fit.checkpointing).lower()}")
    if fit.sharded != stage.train.shard_optimizer:
        flags.append(f"--{stage.key}.shard_optimizer true")
    return f"{' '.join(flags)} (batch {fit.local_batch}, at most {fit.peak / 2**30:.1f} GiB)"


def _fits(
    stage: Stage,
    checkpointing: bool,
    cost: TrainingCost,
    local_batch: int,
    precision: str,
    limit: float,
    processes: int,
) -> list[Fit]:
    """The fits with the fewest accumulation steps: without sharding, and with it where that needs fewer of them."""
    smallest = stage.cost(1, 2, checkpointing, precision, processes)
    found: list[Fit] = []
    for sharded in [False, True] if processes > 1 else [False]:
        if stage.train.shard_optimizer and processes > 1 and not sharded:
            continue
        costs = (smallest.sharded(), cost.sharded()) if sharded else (smallest, cost)
        batch = _largest_batch(*costs, local_batch, limit)
        if batch and (not found or batch[0] > found[0].local_batch):
            accumulation = stage.train.gradient_accumulation_steps * (local_batch // batch[0])
            found.append(Fit(accumulation, batch[0], checkpointing, sharded, batch[1]))
    return found


def _largest_batch(
    smallest: TrainingCost, whole: TrainingCost, local_batch: int, limit: float
) -> tuple[int, float] | None:
    """The largest divisor of the batch that fits, and its peak at most; None: not even one image.

    At each moment the memory is linear in the batch, so its peak is convex in it, and a line through the peaks of
    two batches is not below the peaks between them.

    Args:
        smallest: cost with one image and accumulation.
        whole: cost with `local_batch` images.
        local_batch: images of one process in one pass.
        limit: bytes that can be used.
    """
    if whole.peak <= limit:
        return local_batch, whole.peak
    largest = whole.peak + whole.gradients  # those of the accumulation step before
    for batch in (local_batch // x for x in range(2, local_batch + 1) if local_batch % x == 0):
        peak = smallest.peak + (largest - smallest.peak) * (batch - 1) / max(1, local_batch - 1)
        if peak <= limit:
            return batch, peak
    return None
