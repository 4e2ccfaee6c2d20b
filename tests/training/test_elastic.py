"""Several processes: going on with another number of them, a diverged replica, and saving within a notice."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch import Tensor

from tests.training.test_loop import (
    SETTINGS,
    InterruptionError,
    autoencoder_objective,
    interrupt,
    log_of,
    prior_objective,
    train,
)
from vqvae2.config import TrainConfig
from vqvae2.errors import StoppedError, UserError
from vqvae2.training import checkpoints
from vqvae2.training.checkpoints import load_checkpoint
from vqvae2.training.objective import Objective
from vqvae2.training.replicas import checksum

STEPS, HALFWAY = 100, 48
MODELS: dict[str, Callable[[TrainConfig], Objective]] = {
    "prior": lambda settings: prior_objective(settings, dropout=0.0),
    "autoencoder": autoencoder_objective,
}
# The notice, the time of a step, and the times to write 20 GB to a disk of 1 GB/s and to hash them on a processor
# without instructions for SHA-256, all SCALE times shorter.
SCALE = 15
NOTICE_SECONDS, STEP_SECONDS, WRITE_SECONDS, HASH_SECONDS = (x / SCALE for x in (90, 20, 20 / 1.0, 20 / 0.45))


def train_model(directory: Path, name: str, stop_at: int | None = None) -> None:
    settings = TrainConfig(**{**SETTINGS, "total_steps": STEPS, "save_every": HALFWAY, "log_every": 1})
    objective = MODELS[name](settings)
    try:
        train(directory, interrupt(objective, stop_at) if stop_at else objective, settings)
    except InterruptionError:
        assert stop_at


def before(folder: Path) -> None:
    for name in MODELS:
        train_model(folder / f"{name}_one", name)
    train_model(folder / "prior_one_then_two", "prior", HALFWAY)


def scenario(folder: Path) -> None:
    for name in MODELS:
        train_model(folder / f"{name}_two_then_one", name, HALFWAY)
    train_model(folder / "prior_one_then_two", "prior")
    diverge(folder)
    stop_within_the_notice(folder, PartialState())


def after(folder: Path) -> None:
    for name in MODELS:
        train_model(folder / f"{name}_two_then_one", name)


def diverge(folder: Path) -> None:
    """In step 5, a parameter of process 1 changes by one unit in the last place, or an average of a codebook by 1 %.

    All weights of the parameter change, because the rounding of the next update may undo the change of a single one.
    """
    for name in MODELS:
        settings = TrainConfig(**{**SETTINGS, "total_steps": 20, "save_every": 4, "log_every": 3})
        objective = MODELS[name](settings)
        end_step = objective.end_step

        def spoilt(step: int, *rest: Any, objective: Any = objective, end_step: Any = end_step) -> None:
            end_step(step, *rest)
            if step == 4 and PartialState().process_index == 1:
                if averages := objective.state():
                    averages["top.average_sum"].mul_(1.01)
                else:
                    weights = objective.module.state_dict()["row_position"]
                    weights.copy_(torch.nextafter(weights, torch.tensor(torch.inf)))

        objective.end_step = spoilt
        try:
            train(folder / f"{name}_diverged", objective, settings)
            said = "not stopped"
        except UserError as error:
            said = str(error)
        (folder / f"{name}_said{PartialState().process_index}").write_text(said)


def stop_within_the_notice(folder: Path, state: PartialState) -> None:
    """Process 1 gets a signal in the second step; both are killed when the notice is over. The disk is slow."""
    disk = threading.Lock()
    save_tensors, sha256, file_bytes = checkpoints.save_tensors, checkpoints.sha256, checkpoints.FILE_BYTES
    whole = sum(path.stat().st_size for path in (folder / "prior_one" / "checkpoints" / f"step_{STEPS:08d}").iterdir())

    def slow_save(tensors: dict[str, Tensor], path: Path) -> None:
        save_tensors(tensors, path)
        with disk:
            time.sleep(WRITE_SECONDS * path.stat().st_size / whole)

    def slow_hash(path: Path) -> str:
        time.sleep(HASH_SECONDS * path.stat().st_size / whole)
        return sha256(path)

    checkpoints.save_tensors, checkpoints.sha256, checkpoints.FILE_BYTES = slow_save, slow_hash, 1000
    kill = threading.Timer(1.5 * STEP_SECONDS + NOTICE_SECONDS, os._exit, [9])
    warn = threading.Timer(1.5 * STEP_SECONDS, os.kill, [os.getpid(), signal.SIGUSR1])
    for timer in [kill, warn][: 1 + state.process_index]:
        timer.start()
    settings = TrainConfig(**{**SETTINGS, "total_steps": STEPS, "save_every": 1000, "log_every": 1000})
    try:
        train(folder / "stopped", prior_objective(settings), settings, pause=STEP_SECONDS)
    except StoppedError:
        kill.cancel()
        (folder / f"stopped{state.process_index}").touch()
    checkpoints.save_tensors, checkpoints.sha256, checkpoints.FILE_BYTES = save_tensors, sha256, file_bytes


@pytest.fixture
def folder(together: Path) -> Path:
    return together / __name__


@pytest.mark.parametrize(
    ("name", "then"), [("prior", "one_then_two"), ("prior", "two_then_one"), ("autoencoder", "two_then_one")]
)
def test_a_run_goes_on_with_another_number_of_processes(folder: Path, name: str, then: str) -> None:
    """The mean loss over 100 steps is that of one process, where the number of processes changes halfway."""
    lines = [[x for x in log_of(folder / f"{name}_{way}") if x["split"] == "train"] for way in ("one", then)]
    assert [x["step"] for x in lines[1]] == list(range(1, STEPS + 1))
    mean, other = (np.mean([x["loss"] for x in run]) for run in lines)
    assert other == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize(("name", "tensor"), [("prior", "row_position"), ("autoencoder", "codebook")])
def test_a_diverged_process_stops_the_run(folder: Path, name: str, tensor: str) -> None:
    """A change in process 1 in step 5 is found at step 6, where a log line is due; the checkpoint of step 4 stays."""
    said = [(folder / f"{name}_said{i}").read_text() for i in range(2)]
    assert said[0] == said[1] and said[0].startswith("step 6: ") and "of process 1 differs" in said[0]
    assert load_checkpoint(folder / f"{name}_diverged" / "checkpoints").step == 4
    assert tensor in said[0]


def test_checksum_sees_any_change_of_one_element() -> None:
    """A change of the last bit, and of the sign of zero, in every type and layout."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(3, 4, 5, 6).to(dtype).contiguous(memory_format=torch.channels_last)
        x[0, 0, 0, 0] = 0.0
        before = checksum(x)
        assert checksum(x.clone()) == before
        for value in (-0.0, torch.finfo(dtype).smallest_normal):
            x[0, 0, 0, 0] = value
            assert checksum(x) != before
    assert checksum(torch.tensor(True)) != checksum(torch.tensor(False))


def test_checksum_sees_changes_whose_sum_is_zero() -> None:
    """Elements that change places, and a last bit up in one element and down in another."""
    x = torch.tensor([1.0, 2.0, 3.0])
    assert checksum(x) != checksum(x.flip(0))
    up, down = torch.nextafter(x[0], torch.tensor(9.0)), torch.nextafter(x[2], torch.tensor(0.0))
    assert checksum(x) != checksum(torch.stack([up, x[1], down]))


def test_a_stop_signal_leaves_time_to_save(folder: Path) -> None:
    """With 20 s steps, 1 GB/s and slow hashing, 20 GB are saved within 90 s of a signal to one process, in scale."""
    assert (folder / "stopped0").exists() and (folder / "stopped1").exists()
    assert load_checkpoint(folder / "stopped" / "checkpoints").step == 2
    assert json.loads((folder / "stopped" / "checkpoints" / "step_00000002" / "manifest.json").read_text())["step"] == 2
