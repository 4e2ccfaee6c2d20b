"""What comes before the first step of a stage: its directory, its record, and whether there is anything left to do."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vqvae2.config import TrainConfig
from vqvae2.run_directory import begin_stage
from vqvae2.training.loop import finished_step


def begin_training(directory: Path, sections: dict[str, Any], train: TrainConfig, accelerator: Accelerator) -> bool:
    """Compare the configuration with the one this stage began with, record it, and say what will happen.

    Args:
        directory: of the stage.
        sections: of the configuration that the stage reads.
        train: how it is trained.
        accelerator: prints on the first process alone.

    Returns:
        Whether there are steps left to train.
    """
    finished = finished_step(directory)
    for note in begin_stage(directory, sections, write=accelerator.is_main_process):
        accelerator.print(f"{directory.name}: {note}")
    accelerator.wait_for_everyone()
    if finished >= train.total_steps:
        accelerator.print(f"{directory}: finished at step {finished}, nothing to do (a larger total_steps would go on)")
        return False
    if finished:
        accelerator.print(f"{directory}: finished at step {finished}, goes on to step {train.total_steps}")
    return True
