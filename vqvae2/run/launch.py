"""Accelerate, as every stage starts it."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    gather_object,
    is_tensorboard_available,
    is_wandb_available,
    parse_flag_from_env,
)

from vqvae2.config import Config, MixedPrecision, TrainConfig, as_dict
from vqvae2.errors import ToldError, UserError
from vqvae2.run.directory import write_atomically
from vqvae2.run.precision import resolve_precision

# PyTorch's default of 10 minutes (NCCL) ends a run whose other processes wait for the first one to survey millions of
# files. A process that dies is noticed by its closed connections or by the launcher, not by this limit.
WAIT_FOR_ONE_PROCESS = timedelta(hours=3)
TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def join_processes() -> PartialState:
    """Join the other processes, if there are any; by itself PartialState would not heed ACCELERATE_USE_CPU."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=WAIT_FOR_ONE_PROCESS)


@contextmanager
def refusals_reach_all(state: PartialState | Accelerator) -> Iterator[None]:
    """A block after which a refusal of any process is raised by all of them.

    Without it the others would wait for a process that has ended, where no launcher ends them. Processes must not
    wait for one another within the block; they do at its end.
    """
    error = None
    try:
        yield
    except ToldError as caught:
        error = caught
    if state.num_processes > 1:
        error = next((x for x in [error, *gather_object([error])] if x is not None), None)
        if error is not None:
            error.reaches_all = True
    if error is not None:
        raise error


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
    # Stage 4 trains one prior after another, each in its own precision, and there is no public way to change it.
    AcceleratorState._reset_state()
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
    return start_accelerator(key, train.mixed_precision, train.gradient_accumulation_steps, config.trackers, directory)


def start_trackers(accelerator: Accelerator, config: Config, directory: Path) -> None:
    """Begin to report to the configuration's trackers, or go on with what a stopped stage has reported.

    Args:
        accelerator: of `start_training_accelerator`.
        config: of the run; its run directory names the project.
        directory: of the stage; keeps the id of its Weights & Biases run, so that a resumed stage goes on with it.
    """
    if not config.trackers:
        return
    options: dict[str, dict[str, str]] = {}
    if "wandb" in config.trackers and accelerator.is_main_process:
        path = directory / "wandb_id"
        if not path.exists():
            write_atomically(path, secrets.token_hex(8).encode())
        options["wandb"] = {"id": path.read_text(), "resume": "allow", "name": directory.name, "dir": str(directory)}
    accelerator.init_trackers(Path(config.run_dir).name, init_kwargs=options)
    nested = as_dict(config)
    for tracker in accelerator.trackers:
        tracker.store_init_configuration(nested if tracker.name == "wandb" else dict(_flat(nested)))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float | str]]:
    """Nested values as TensorBoard takes them: SECTION.KEY and a number or a text."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, int | float | str) else str(value)
