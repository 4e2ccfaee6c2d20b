"""Accelerate, as every stage starts it."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    is_tensorboard_available,
    is_wandb_available,
    parse_flag_from_env,
)

from vqvae2.config import Config, MixedPrecision, TrainConfig, as_dict
from vqvae2.errors import UserError
from vqvae2.precision import resolve_precision

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def join_processes() -> PartialState:
    """Join the other processes, if there are any; by itself PartialState would not heed ACCELERATE_USE_CPU."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def start_accelerator(
    key: str,
    mixed_precision: MixedPrecision,
    accumulation: int = 1,
    trackers: Sequence[str] = (),
    directory: Path | None = None,
) -> Accelerator:
    """Join the other processes, if there are any.

    Args:
        key: the configuration section that the precision comes from, for messages.
        mixed_precision: what is wanted; auto is decided by the device.
        accumulation: passes in an optimiser step.
        trackers: names of trackers.
        directory: where they keep their files.
    """
    for tracker in trackers:
        if not TRACKERS[tracker]():
            raise UserError(f'trackers: {tracker} is not installed: pip install "vqvae2[{tracker}]", or leave it out')
    precision = resolve_precision(f"{key}.mixed_precision", mixed_precision, join_processes().device)
    AcceleratorState._reset_state()  # stage 4 trains one prior after another, each in its own precision
    # Buffers are the same everywhere by construction, so that nothing needs to be broadcast.
    distributed = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=accumulation,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(str(directory)) if directory else None,
        kwargs_handlers=[distributed],
    )


def start_training_accelerator(key: str, train: TrainConfig, config: Config, directory: Path) -> Accelerator:
    """As `start_accelerator`, for a stage that trains."""
    accelerator = start_accelerator(
        key, train.mixed_precision, train.gradient_accumulation_steps, config.trackers, directory
    )
    if config.trackers:
        flat = {name: str(value) for name, value in as_dict(config).items()}
        accelerator.init_trackers(Path(config.run_dir).name, config=flat)
    return accelerator
