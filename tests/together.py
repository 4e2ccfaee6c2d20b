"""Start scenarios in several CPU processes, so that tests of many scenarios share the time to start the processes.

A scenario is a module with the functions `before(folder)`, called in the process of pytest, `scenario(folder)`, called
in each of the processes, and `after(folder)`, called in the process of pytest again.
"""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def start_together(scenarios: list[str], folder: Path, processes: int = 2) -> list[subprocess.Popen]:
    """Start processes that call the scenarios one after another."""
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
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.together", str(folder), *scenarios],
            env={**common, "RANK": str(i), "LOCAL_RANK": str(i)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(processes)
    ]


def run_together(scenarios: list[str], folder: Path) -> None:
    """Run scenarios in two processes, each in a folder of its name, and check that both processes succeed."""
    modules = [importlib.import_module(name) for name in scenarios]
    for module in modules:
        (folder / module.__name__).mkdir()
        module.before(folder / module.__name__)
    started = start_together(scenarios, folder)
    try:
        said = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    for module in modules:
        module.after(folder / module.__name__)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name).scenario(Path(sys.argv[1]) / name)
    sys.stderr.flush()
    os._exit(0)  # as the pipelines end several processes
