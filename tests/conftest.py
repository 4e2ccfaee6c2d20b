"""Helpers that call the pipelines, and fixtures with a tiny run of all stages that is created once for all tests."""

import fcntl
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import psutil
import pytest
import torch

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)  # more threads slow each other down at these sizes
# modules, see together.py; the comparison is the last one, because it ends the group of processes
SCENARIOS = [
    "tests.training.test_sharding",
    "tests.training.test_elastic",
    "tests.generation.test_two_processes",
    "tests.family.test_two_processes",
]
TINY = """
run_dir: {run_dir}
images: {{source: shapes, size: [16, 32], horizontal_flip: true, workers: 0, max_images: 48}}
autoencoder:
  hidden_channels: 16
  residual_channels: 8
  residual_layers: 1
  revival_window_images: 16
  levels:
    - {{name: top, stride: 8, codebook_size: 12, code_dim: 4}}
    - {{name: bottom, stride: 4, codebook_size: 300, code_dim: 8}}
stage1: {{batch_size: 8, total_steps: 4, warmup_steps: 1, mixed_precision: "no", save_every: 2, validate_every: 4,
    log_every: 2}}
stage2: {{batch_size: 20, mixed_precision: "no"}}
priors:
  top:
    {{hidden_channels: 16, residual_channels: 16, layers: 2, kernel_size: 3, attention_layers: 1, attention_heads: 2,
     train: {{batch_size: 8, total_steps: 4, optimizer: muon, warmup_steps: 1, mixed_precision: "no",
              weight_average_decay: 0.9, save_every: 2, validate_every: 4, log_every: 2}}}}
  bottom:
    {{hidden_channels: 8, residual_channels: 8, layers: 2, kernel_size: 3, conditioning_layers: 1, output_layers: 1,
     train: {{batch_size: 8, total_steps: 4, warmup_steps: 1, mixed_precision: "no", save_every: 2, validate_every:
         4, log_every: 2}}}}
evaluation: {{num_samples: 13, classifier_size: 32, classifier_steps: 2, batch_size: 8}}
"""


def pytest_xdist_auto_num_workers() -> int:
    """Use three workers on every machine: many tests wait, but those with several processes need cores of their own."""
    return 3


def command_of(
    pipeline: str, *arguments: str, processes: int | None = None, launcher: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The command line of a pipeline and its environment.

    Args:
        pipeline: name of the script, without the suffix.
        arguments: command-line arguments of the script.
        processes: number of processes to start with `accelerate launch`; None: run the script with Python.
        launcher: arguments of Python that start the script with another launcher.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher]
    if processes is not None or launcher:
        environment["ACCELERATE_USE_CPU"] = "1"
    if processes is not None:
        command += ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    if processes is not None and processes > 1:
        # below Linux's range of ports for outgoing connections, which begins at 32768
        command += ["--multi_gpu", "--main_process_port", str(20000 + os.getpid() % 12000)]
    return [*command, str(ROOT / "pipelines" / f"{pipeline}.py"), *arguments], environment


def call(
    pipeline: str, *arguments: str, processes: int | None = None, timeout: int = 240
) -> subprocess.CompletedProcess:
    """Run a pipeline in a subprocess and wait until it ends."""
    command, environment = command_of(pipeline, *arguments, processes=processes)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


@contextmanager
def running(
    pipeline: str, *arguments: str, processes: int | None = None, launcher: Sequence[str] = ()
) -> Iterator[subprocess.Popen]:
    """Context manager that runs a pipeline in the background; on exit, it and the processes it started are killed."""
    command, environment = command_of(pipeline, *arguments, processes=processes, launcher=launcher)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        others = descendants(process)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for each in others:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.wait()


def descendants(started: subprocess.Popen) -> list[int]:
    """Ids of all processes below `started`; a launcher starts its processes in sessions of their own."""
    try:
        return [x.pid for x in psutil.Process(started.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until(holds: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Poll until `holds()` is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.05)


def launch(pipeline: str, *arguments: str, processes: int | None = None, timeout: int = 240) -> str:
    """Run a pipeline in a subprocess as users do, assert that it succeeds, and return its standard output."""
    result = call(pipeline, *arguments, processes=processes, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_here(pipeline: str, *arguments: str) -> tuple[int, str, str]:
    """Run a pipeline in this process, which has PyTorch imported; return its exit code, output and error output."""
    out, said, former = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"{pipeline}.py", *arguments]
    try:
        with pytest.raises(SystemExit) as ended, redirect_stderr(said), redirect_stdout(out):
            runpy.run_path(str(ROOT / "pipelines" / f"{pipeline}.py"), run_name="__main__")
    finally:
        sys.argv = former
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), said.getvalue()


def succeed(pipeline: str, *arguments: str) -> str:
    """Run a pipeline in this process, assert that it succeeds, and return its standard output."""
    code, out, said = run_here(pipeline, *arguments)
    assert code == 0, out + said
    return out


def refusal(pipeline: str, *arguments: str) -> str:
    """Run a pipeline in this process, assert that it fails without a traceback, and return its short error message."""
    code, _, message = run_here(pipeline, *arguments)
    bars = ("step/s]", "file/s]", "image/s]")  # progress bars are drawn again now and then
    lines = [line for line in message.splitlines() if line.strip() and not line.endswith(bars)]
    assert code in (1, 2) and "Traceback" not in message and 1 <= len(lines) <= 3, message
    return message


def write_config(folder: Path, run_dir: Path) -> Path:
    """Write the tiny configuration to a file and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(run_dir=run_dir))
    return path


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder filled by `make`, which is called once for all pytest workers."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder = shared / name
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of each scenario of two processes."""
    from tests.together import run_together  # it imports this module

    return made_once(tmp_path_factory, "together", lambda folder: run_together(SCENARIOS, folder))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The configuration file and the run directory of a run with stages 1 to 4 finished."""

    def make(folder: Path) -> None:
        config = write_config(folder, folder / "run")
        for stage in (1, 2, 3, 4):
            launch(f"stage{stage}", "--config", str(config))

    folder = made_once(tmp_path_factory, "tiny", make)
    return folder / "tiny.yaml", folder / "run"


@pytest.fixture(scope="session")
def evaluated_run(tiny_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an evaluated copy of the tiny run."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_run[1], folder / "run")
        launch("evaluate", "--run_dir", str(folder / "run"))

    return made_once(tmp_path_factory, "evaluated", make) / "run"
