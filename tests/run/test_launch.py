"""Training with several processes, and the options passed to Accelerate."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState

from tests.conftest import ROOT, command_of, wait_until, write_config
from vqvae2.errors import UserError
from vqvae2.run import launch
from vqvae2.run.command_line import parse_config
from vqvae2.run.launch import start_accelerator, start_trackers
from vqvae2.run.lock import locked


def start_two(*arguments: str) -> list[subprocess.Popen]:
    """Start two processes of a pipeline without a launcher, as srun does."""
    command, environment = command_of(*arguments)
    environment |= {"ACCELERATE_USE_CPU": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(20000 + (os.getpid() + 7) % 20000)
    ranks = ({"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(2))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return [subprocess.Popen(command, env={**environment, **rank}, **streams) for rank in ranks]


def end(processes: list[subprocess.Popen]) -> None:
    """Kill the processes that are still running."""
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_refusal_of_the_first_process_ends_all(tmp_path: Path) -> None:
    """If the directory is in use, both processes exit with code 1 and only the first prints the reason."""
    config = write_config(tmp_path, tmp_path / "run")
    with locked(tmp_path / "run" / "stage1"):
        processes = start_two("stage1", "--config", str(config))
        try:
            said = [process.communicate(timeout=60)[1] for process in processes]
        finally:
            end(processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert "in use by process" in said[0] and "Traceback" not in said[0]
    assert "in use" not in said[1] and "Traceback" not in said[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others_soon(tmp_path: Path, rank: int) -> None:
    """When a process is killed, the other one fails quickly, despite the long timeout of the process group."""
    flags = ["--stage1.total_steps", "100000", "--stage1.validate_every", "100000", "--stage1.save_every", "100000"]
    config = write_config(tmp_path, tmp_path / "run")
    processes = start_two("stage1", "--config", str(config), *flags)
    log = tmp_path / "run" / "stage1" / "metrics.jsonl"
    try:
        wait_until(lambda: log.exists() and log.stat().st_size > 0, "the first step")
        with pytest.raises(UserError, match="in use by process"), locked(tmp_path / "run" / "stage1"):
            pass
        processes[rank].send_signal(signal.SIGKILL)
        began = time.monotonic()
        processes[1 - rank].communicate(timeout=60)
        assert processes[1 - rank].returncode != 0 and time.monotonic() - began < 30
    finally:
        end(processes)


def test_the_other_processes_wait_for_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout exceeds NCCL's default of 10 minutes, so that processes can wait for a survey of a million files."""
    asked = {}
    monkeypatch.setattr(launch, "PartialState", lambda **options: asked.update(options))
    launch.join_processes()
    assert asked["timeout"] > timedelta(hours=1)


@pytest.mark.parametrize(
    ("variable", "name"), [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")]
)
def test_models_are_not_split(monkeypatch: pytest.MonkeyPatch, variable: str, name: str) -> None:
    """FSDP, DeepSpeed and Megatron-LM are refused before the processes are joined, with what to use instead."""
    monkeypatch.setattr(launch, "PartialState", lambda **options: pytest.fail("joined"))
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(UserError, match=rf"{name}.*MULTI_GPU.*shard_optimizer"):
        start_accelerator("stage1", "no")


DENORMAL = """
import torch
from vqvae2.run.launch import join_processes
torch.set_num_threads(2)
join_processes()
momentum = torch.full((1_000_000,), 2e-38)  # long enough for both threads
momentum.mul_(0.25)
print(int(momentum.view(torch.int32).count_nonzero()))
"""


def test_denormal_numbers_are_zeros_in_all_threads() -> None:
    """The momentum of units that no longer learn becomes 0, since CPUs are slow with denormal numbers."""
    result = subprocess.run([sys.executable, "-c", DENORMAL], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.split() == ["0"], result.stderr


def test_one_process_trains_in_one_precision_after_another() -> None:
    """The mixed precision can change within a process, as in stage 4, where each prior has its own.

    This relies on AcceleratorState._reset_state.
    """
    for precision in ("no", "bf16", "no"):
        assert start_accelerator("stage1", precision).mixed_precision == precision
        assert AcceleratorState().mixed_precision == precision


class Tracker:
    """Tracker that stores the configuration it is given."""

    def __init__(self, name: str):
        self.name = name

    def store_init_configuration(self, values: dict) -> None:
        self.values = values


def test_a_resumed_stage_goes_on_with_its_run_of_weights_and_biases(tmp_path: Path) -> None:
    """A resumed stage uses the same Weights & Biases run id, and another stage a different one.

    Weights & Biases gets the nested configuration; TensorBoard gets a flat one of numbers and strings.
    """
    config, _ = parse_config(["--config", str(write_config(tmp_path, tmp_path / "run"))])
    config = replace(config, trackers=["wandb", "tensorboard"])
    asked, trackers = [], [Tracker("wandb"), Tracker("tensorboard")]
    accelerator = SimpleNamespace(
        is_main_process=True,
        trackers=trackers,
        init_trackers=lambda project, init_kwargs: asked.append((project, init_kwargs["wandb"])),
    )
    for stage in ("stage1", "stage1", "stage3"):
        (tmp_path / stage).mkdir(exist_ok=True)
        start_trackers(accelerator, config, tmp_path / stage)
    (first, again, other) = (options["id"] for _, options in asked)
    assert first == again != other and len(first) >= 8 and {project for project, _ in asked} == {"run"}
    assert all(options["resume"] == "allow" for _, options in asked)
    nested, flat = (tracker.values for tracker in trackers)
    assert nested["stage1"]["batch_size"] == 8 and nested["priors"]["top"]["train"]["total_steps"] == 4
    assert flat["stage1.batch_size"] == 8 and flat["priors.top.train.total_steps"] == 4
    assert all(isinstance(x, int | float | str) for x in flat.values())


@pytest.mark.parametrize(
    "pipeline",
    [
        "stage1",
        "stage2",
        "stage3",
        "stage4",
        "sample",
        "evaluate",
        "benchmark",
        "plan",
        "publish",
        "reconstruct",
        "demo",
        "compare",
    ],
)
def test_help_does_not_wait_for_pytorch(pipeline: str) -> None:
    """--help does not import torch."""
    program = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(ROOT / "pipelines" / f"{pipeline}.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "False" and "usage:" in result.stdout, result.stderr
