"""Start a scenario, MODULE:FUNCTION, in several CPU processes, each of which calls the function with a folder."""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def start_together(scenario: str, folder: Path, processes: int = 2, **variables: str) -> list[subprocess.Popen]:
    """Start the processes, with `variables` added to their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "1",
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **variables,
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.together", scenario, str(folder)],
            env={**common, "RANK": str(i), "LOCAL_RANK": str(i)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(processes)
    ]


def run_together(scenario: str, folder: Path, processes: int = 2) -> None:
    """Run a scenario and check that all processes succeed."""
    started = start_together(scenario, folder, processes)
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)


if __name__ == "__main__":
    module, function = sys.argv[1].split(":")
    getattr(importlib.import_module(module), function)(Path(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # as the pipelines end several processes
