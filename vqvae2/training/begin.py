"""What comes before a stage's first step: whether anything is left to do, and its configuration's record."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vqvae2.config import TrainConfig
from vqvae2.run_directory import compare_configuration, record_configuration
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
    """
    finished = finished_step(directory)
    for note in compare_configuration(directory, sections):
        accelerator.print(f"{directory.name}: {note}")
    if finished >= train.total_steps:
        accelerator.print(f"{directory}: finished at step {finished}, nothing to do (a larger total_steps would go on)")
        return False
    if finished:
        accelerator.print(f"{directory}: finished at step {finished}, goes on to step {train.total_steps}")
    return True


def record(directory: Path, sections: dict[str, Any], accelerator: Accelerator) -> None:
    """Make the stage's directory with its config.yaml; every process returns when they are there."""
    if accelerator.is_main_process:
        record_configuration(directory, sections)
    accelerator.wait_for_everyone()
