"""Kill every training stage at random moments, resume it, and compare the result with an uninterrupted run.

    python -m tests.by_hand.soak --kills 200 --folder /tmp/soak
    python -m tests.by_hand.soak --kills 50 --processes 2 --folder /tmp/soak2

The weights must be bit-identical, and metrics.jsonl the same but for seconds and images per second.
"""

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil

from tests.conftest import call, running, succeed, write_config
from vqvae2.run.command_line import parse_options, run

STEPS = 90
TIMES = ("seconds", "images_per_second")
STAGES = {
    "stage1": ("stage1", ["--stage1"], []),
    "stage1, 2 loader workers": ("stage1", ["--stage1"], ["--images.workers", "2"]),
    "stage3": ("stage3", ["--priors.top.train"], []),
    "stage4": ("stage4", ["--priors.bottom.train"], []),
}


@dataclass(frozen=True)
class Options:
    """Options of the soak test.

    Attributes:
        folder: folder of the runs; it must not exist.
        kills: number of kills, over all stages.
        processes: number of processes that train together. With several, half of the kills end one process, and its
            launcher ends the others; the other half end all of them and the launcher at once.
        seed: seed of the random moments.
    """

    folder: str
    kills: int = 200
    processes: int = 1
    seed: int = 0


def flags_of(config: Path, name: str, run_dir: Path) -> tuple[str, list[str], Path]:
    """The script, the flags and the directory of a stage that saves every few steps."""
    script, (section,), more = STAGES[name]
    steps = {"total_steps": STEPS, "save_every": 7, "validate_every": 30, "log_every": 5}
    flags = [x for key, value in steps.items() for x in (f"{section}.{key}", str(value))]
    directory = run_dir / {"stage4": "stage4/bottom"}.get(script, script)
    return script, ["--config", str(config), "--run_dir", str(run_dir), *flags, *more], directory


def outcome(directory: Path) -> tuple[bytes, list[dict]]:
    """The exported weights, and the lines of the log without times."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return (directory / "model.safetensors").read_bytes(), [
        {key: value for key, value in line.items() if key not in TIMES} for line in lines
    ]


def soak(
    finished: Path, config: Path, name: str, kills: int, moments: random.Random, folder: Path, processes: int = 1
) -> tuple[int, int]:
    """Train a stage repeatedly until it has been killed `kills` times. Returns (kills, compared runs).

    Args:
        finished: a run directory whose stages 1 to 4 have finished.
        config: its configuration file.
        name: name of the stage, a key of STAGES.
        kills: number of kills.
        moments: generator of the moments of the kills.
        folder: folder of the runs.
        processes: number of processes that train together.
    """
    together = None if processes == 1 else processes
    script, flags, directory = flags_of(config, name, folder / "uninterrupted")
    shutil.copytree(finished, folder / "uninterrupted")
    shutil.rmtree(directory)
    began = time.monotonic()
    succeed(script, *flags, processes=together)
    longest = (time.monotonic() - began) / 6
    expected = outcome(directory)
    script, flags, directory = flags_of(config, name, folder / "killed")
    done = compared = 0
    while done < kills:
        shutil.rmtree(folder / "killed", ignore_errors=True)
        shutil.copytree(finished, folder / "killed")
        shutil.rmtree(directory)
        while not (directory / "model.json").exists():
            with running(script, *flags, processes=together) as process:
                while process.poll() is None and trainer(directory, process) is None:
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, longest) if done < kills else 0)
                main = trainer(directory, process)
                kill = process.poll() is None and main is not None and done < kills
                if kill:
                    alone = processes > 1 and done % 2 == 0
                    for each in [main] if alone else [process.pid, *descendants(process)]:
                        with suppress(ProcessLookupError):
                            os.kill(each, signal.SIGKILL)
                    done += 1
                said = "".join(process.communicate(timeout=240))
                assert kill or process.returncode == 0, said
        again = call(script, *flags, processes=together)
        assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
        weights, lines = outcome(directory)
        assert weights == expected[0], f"{name}: different weights in {directory} and {folder / 'uninterrupted'}"
        assert lines == expected[1], f"{name}: different metrics.jsonl in {directory} and {folder / 'uninterrupted'}"
        compared += 1
        print(f"{name}: same result after {done} kills", flush=True)
    return done, compared


def trainer(directory: Path, started: Popen) -> int | None:
    """Id of the main process that has locked the stage, if it is `started` or one of its descendants."""
    try:
        process = json.loads((directory / "lock").read_text())["process"]
    except (FileNotFoundError, ValueError):
        return None
    return process if process in [started.pid, *descendants(started)] else None


def descendants(started: Popen) -> list[int]:
    """Ids of all processes below `started`; a launcher starts its processes in sessions of their own."""
    try:
        return [x.pid for x in psutil.Process(started.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    options = parse_options(Options, __doc__)
    folder = Path(options.folder)
    folder.mkdir(parents=True)
    config = write_config(folder, folder / "finished")
    for stage in (1, 2, 3, 4):
        succeed(f"stage{stage}", "--config", str(config))
    moments = random.Random(options.seed)
    share = -(-options.kills // len(STAGES))
    done = [
        soak(folder / "finished", config, name, share, moments, folder / name, options.processes) for name in STAGES
    ]
    print(f"{sum(x[0] for x in done)} kills; all {sum(x[1] for x in done)} finished runs equal the uninterrupted ones")


if __name__ == "__main__":
    run(main)
