"""Preparation of a training stage: check whether steps are left to train, and record the configuration."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vqvae2.config import RunConfig, TrainConfig, as_dict
from vqvae2.errors import UserError
from vqvae2.run.directory import compare_configuration, record_configuration, write_atomically
from vqvae2.run.environment import describe_environment
from vqvae2.run.launch import refusals_reach_all, start_trackers
from vqvae2.run.lock import locked_by_main
from vqvae2.run.nodes import check_environments, check_same_view
from vqvae2.training.checkpoints import newest_step
from vqvae2.training.loop import finished_step

STATE = ("config.yaml", "model.json", "model.safetensors", "checkpoints/step_*/*")  # what a stage goes on from


def begin_training(directory: Path, sections: dict[str, Any], train: TrainConfig, accelerator: Accelerator) -> bool:
    """Compare the configuration with the recorded one and print what the stage will do, without writing any file.

    Args:
        directory: directory of the stage.
        sections: sections of the configuration that the stage reads.
        train: training configuration of the stage.
        accelerator: prints on the main process only.

    Returns:
        Whether there are steps left to train.

    Raises:
        UserError: a value that must stay the same has changed, or a checkpoint is newer than `total_steps`, or
            those of a finished stage are missing, or the processes do not share the directory.
    """
    check_same_view(directory, STATE, accelerator)
    finished = finished_step(directory)
    for note in compare_configuration(directory, sections):
        accelerator.print(f"{directory.name}: {note}")
    if finished >= train.total_steps:
        accelerator.print(f"{directory}: finished at step {finished}, nothing to do (increase total_steps to train on)")
        return False
    saved = newest_step(directory / "checkpoints")
    if saved > train.total_steps:
        raise UserError(
            f"{directory}: total_steps is {train.total_steps}, but the newest checkpoint is of step {saved}: "
            f"set total_steps to {saved} or more, or use another run_dir"
        )
    if finished > saved:
        raise UserError(
            f"{directory}: finished at step {finished}, but its checkpoints are missing, from which training would go "
            "on: restore them, or use another run_dir with start_from"
        )
    if finished >= 0:
        accelerator.print(f"{directory}: finished at step {finished}, continuing to step {train.total_steps}")
    return True


@contextmanager
def recorded(directory: Path, sections: dict[str, Any], config: RunConfig, accelerator: Accelerator) -> Iterator[None]:
    """Context manager that locks the stage's directory, records the configuration and starts the trackers.

    It writes the stage's config.yaml and environment.json, and the config.yaml of the run, which contains the whole
    configuration and is read by evaluate.py.

    Args:
        directory: directory of the stage.
        sections: sections of the configuration that the stage reads.
        config: configuration of the run.
        accelerator: the main process locks and writes.

    Raises:
        UserError: another process has locked the directory, a file cannot be written, or the processes do not share
            the directory or have different versions.
    """
    with locked_by_main(directory, accelerator):
        versions = describe_environment()
        for warning in check_environments(versions, accelerator):
            accelerator.print(warning)
        with refusals_reach_all(accelerator):
            if accelerator.is_main_process:
                record_configuration(directory, sections)
                record_configuration(Path(config.run_dir), as_dict(config))
                environment = {
                    **versions,
                    "processes": accelerator.num_processes,
                    "mixed_precision": accelerator.mixed_precision,
                }
                write_atomically(directory / "environment.json", json.dumps(environment, indent=2).encode())
        start_trackers(accelerator, config, directory)
        yield
