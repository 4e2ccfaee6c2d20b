"""What comes before a stage's first step: whether anything is left to do, and its configuration's record."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vqvae2.config import Config, TrainConfig, as_dict
from vqvae2.errors import UserError
from vqvae2.run.directory import compare_configuration, record_configuration, write_atomically
from vqvae2.run.environment import describe_environment
from vqvae2.run.launch import refusals_reach_all, start_trackers
from vqvae2.run.lock import locked
from vqvae2.training.checkpoints import newest_step
from vqvae2.training.loop import finished_step


def begin_training(directory: Path, sections: dict[str, Any], train: TrainConfig, accelerator: Accelerator) -> bool:
    """Compare the configuration with the one this stage began with, and say what will happen; nothing is written.

    Args:
        directory: of the stage.
        sections: of the configuration that the stage reads.
        train: how it is trained.
        accelerator: prints on the first process alone.

    Returns:
        Whether there are steps left to train.

    Raises:
        UserError: a value has changed that may not change, or training has gone beyond `total_steps`.
    """
    finished = finished_step(directory)
    for note in compare_configuration(directory, sections):
        accelerator.print(f"{directory.name}: {note}")
    if finished >= train.total_steps:
        accelerator.print(f"{directory}: finished at step {finished}, nothing to do (a larger total_steps would go on)")
        return False
    saved = newest_step(directory / "checkpoints")
    if saved > train.total_steps:
        raise UserError(
            f"{directory}: total_steps is {train.total_steps}, but the newest checkpoint is of step {saved}: "
            f"set total_steps to {saved} or more, or use another run_dir"
        )
    if finished:
        accelerator.print(f"{directory}: finished at step {finished}, goes on to step {train.total_steps}")
    return True


@contextmanager
def recorded(directory: Path, sections: dict[str, Any], config: Config, accelerator: Accelerator) -> Iterator[None]:
    """Hold the stage's directory while it trains, with its config.yaml and environment.json written first
    and its trackers started.

    The run's own config.yaml is written, too: the whole configuration, which evaluate.py starts from.

    Raises:
        UserError: another process holds it.
    """
    with ExitStack() as held:
        with refusals_reach_all(accelerator):
            if accelerator.is_main_process:
                held.enter_context(locked(directory))
                record_configuration(directory, sections)
                record_configuration(Path(config.run_dir), as_dict(config))
                environment = {
                    **describe_environment(),
                    "processes": accelerator.num_processes,
                    "mixed_precision": accelerator.mixed_precision,
                }
                write_atomically(directory / "environment.json", json.dumps(environment, indent=2).encode())
        start_trackers(accelerator, config, directory)
        yield
