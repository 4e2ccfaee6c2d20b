"""Setup of Accelerate, its processes and its trackers."""

import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
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

from vqvae2.config import MixedPrecision, RunConfig, TrainConfig, as_dict
from vqvae2.errors import ToldError, UserError
from vqvae2.run.directory import accessing, write_atomically
from vqvae2.run.precision import resolve_precision
from vqvae2.run.restarts import use_fresh_store

# PyTorch's default timeout of 10 minutes (NCCL) is too short for the processes that wait while the main process surveys
# millions of files. A process that dies is detected by its closed connections or by the launcher, not by this timeout.
WAIT_FOR_ONE_PROCESS = timedelta(hours=3)
TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}

SPLITS_MODELS = {  # environment variables that `accelerate launch` sets
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


class Processes(NamedTuple):
    """Processes that do something together, and this one among them, without an accelerator."""

    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True


Together: TypeAlias = Accelerator | PartialState | Processes
ALONE = Processes()


def join_processes() -> PartialState:
    """Initialize the process group if there are several processes, and compute with denormal numbers as zeros.

    ACCELERATE_USE_CPU is passed on explicitly, since PartialState does not read it. The optimizer's momentum of units
    that no longer learn decays to denormal numbers (below 1.2e-38), which slow CPUs down, see
    vqvae2/training/README.md. Call this before other functions of PyTorch: its threads take the setting from the one
    that starts them.

    Raises:
        UserError: Accelerate is configured to split models over processes, or restarts would hang.
    """
    for variable, name in SPLITS_MODELS.items():
        if parse_flag_from_env(variable):
            raise UserError(
                f"Accelerate is configured for {name} ({variable}), which splits a model over processes. Here each "
                "process holds the whole model, so that a run can go on with any number of processes. Use "
                "distributed_type MULTI_GPU (accelerate launch --multi_gpu), with shard_optimizer: true to save memory"
            )
    use_fresh_store()
    torch.set_flush_denormal(True)
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=WAIT_FOR_ONE_PROCESS)


@contextmanager
def refusals_reach_all(state: Together) -> Iterator[None]:
    """Context manager at whose end all processes raise the ToldError of any process, with its host if that is another.

    A file or folder that cannot be accessed is such an error, see `accessing`. Without the context manager, the other
    processes would wait for a process that has ended, unless a launcher ends them. Processes must not communicate
    inside the block; they synchronize at its end.
    """
    error = None
    try:
        with accessing():
            yield
    except ToldError as caught:
        error = caught
    if state.num_processes > 1:
        everyone = gather_object([(error, socket.gethostname())])
        first = next(((x, host) for x, host in everyone if x is not None), None)
        if error is None and first is not None:
            here = first[1] == socket.gethostname()
            error = first[0] if here else type(first[0])(f"on host {first[1]}: {first[0]}")
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
    """Create an Accelerator for all processes.

    Args:
        key: configuration section of the precision, for messages.
        mixed_precision: the configured precision; auto depends on the device.
        accumulation: number of gradient accumulation steps per optimizer step.
        trackers: names of the experiment trackers.
        directory: directory of the trackers' files.

    Raises:
        UserError: a tracker is not installed, or the device does not support the precision.
    """
    for tracker in trackers:
        if not TRACKERS[tracker]():
            raise UserError(f'trackers: {tracker} is not installed: pip install "vqvae2[{tracker}]", or remove it')
    state = join_processes()
    precision = resolve_precision(f"{key}.mixed_precision", mixed_precision, state.device)
    # Stage 4 trains several priors, each with its own precision. Accelerate has no public function to change it.
    AcceleratorState._reset_state()
    # Buffers are identical in all processes by construction, so they need no broadcast. DistributedDataParallel
    # regroups gradients after the first step, unless it searches for unused parameters. The order in which three or
    # more processes are summed depends on the groups, so that a resumed run would be rounded differently.
    distributed = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=state.num_processes > 2
    )
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=accumulation,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(str(directory)) if directory else None,
        kwargs_handlers=[distributed],
    )


def start_training_accelerator(key: str, train: TrainConfig, config: RunConfig, directory: Path) -> Accelerator:
    """Create an Accelerator for a training stage, see `start_accelerator`."""
    return start_accelerator(key, train.mixed_precision, train.gradient_accumulation_steps, config.trackers, directory)


def start_trackers(accelerator: Accelerator, config: RunConfig, directory: Path) -> None:
    """Start the configured trackers, or resume those of a stopped stage.

    Args:
        accelerator: result of `start_training_accelerator`.
        config: configuration of the run; the name of its run directory is the project name.
        directory: directory of the stage. It stores the id of the Weights & Biases run, so that a resumed stage
            continues the same Weights & Biases run.
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
    """Flatten nested values to SECTION.KEY and a number or string, as TensorBoard requires."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, int | float | str) else str(value)
