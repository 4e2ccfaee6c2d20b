"""Kill every training stage at random moments, resume it, and compare the result with an uninterrupted run.

    python -m tests.by_hand.soak --kills 200 --folder /tmp/soak
    python -m tests.by_hand.soak --kills 100 --processes 4 --sharded true --folder /tmp/soak4

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

from tests.conftest import call, descendants, launch, running, write_config
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
        processes: number of processes that train together. With several, two of three kills end a random one of them,
            and the others must end within 60 seconds; the third ends all of them and the launcher at once.
        sharded: whether the processes share the optimizer state.
        seed: seed of the random moments.
    """

    folder: str
    kills: int = 200
    processes: int = 1
    sharded: bool = False
    seed: int = 0


def flags_of(config: Path, name: str, run_dir: Path, sharded: bool) -> tuple[str, list[str], Path]:
    """The script, the flags and the directory of a stage that saves every few steps."""
    script, (section,), more = STAGES[name]
    steps = {"total_steps": STEPS, "save_every": 7, "validate_every": 30, "log_every": 5}
    steps |= {"shard_optimizer": "true"} if sharded else {}
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
    finished: Path,
    config: Path,
    name: str,
    kills: int,
    moments: random.Random,
    folder: Path,
    processes: int = 1,
    sharded: bool = False,
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
        sharded: whether they share the optimizer state.
    """
    together = None if processes == 1 else processes
    script, flags, directory = flags_of(config, name, folder / "uninterrupted", sharded)
    shutil.copytree(finished, folder / "uninterrupted")
    shutil.rmtree(directory)
    began = time.monotonic()
    launch(script, *flags, processes=together)
    longest = (time.monotonic() - began) / 6
    expected = outcome(directory)
    script, flags, directory = flags_of(config, name, folder / "killed", sharded)
    done = compared = 0
    slowest = 0.0  # seconds from a kill to the end of all processes
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
                    alone = processes > 1 and done % 3 < 2
                    victims = [moments.choice(trainers(process, script))] if alone else everyone(process)
                    for each in victims:
                        with suppress(ProcessLookupError):
                            os.kill(each, signal.SIGKILL)
                    done += 1
                killed_at = time.monotonic()
                said = "".join(process.communicate(timeout=240))
                slowest = max(slowest, time.monotonic() - killed_at if kill else 0)
                assert kill or process.returncode == 0, said
                assert slowest < 60, f"{slowest:.0f} s from the kill to the end of all processes"
        again = call(script, *flags, processes=together)
        assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
        weights, lines = outcome(directory)
        assert weights == expected[0], f"{name}: different weights in {directory} and {folder / 'uninterrupted'}"
        assert lines == expected[1], f"{name}: different metrics.jsonl in {directory} and {folder / 'uninterrupted'}"
        compared += 1
        print(f"{name}: same result after {done} kills, each ended all within {slowest:.0f} s", flush=True)
    return done, compared


def trainer(directory: Path, started: Popen) -> int | None:
    """Id of the main process that has locked the stage, if it is `started` or one of its descendants."""
    try:
        process = json.loads((directory / "lock").read_text())["process"]
    except (FileNotFoundError, ValueError):
        return None
    return process if process in everyone(started) else None


def everyone(started: Popen) -> list[int]:
    """Ids of a process and of all below it."""
    return [started.pid, *descendants(started)]


def trainers(started: Popen, script: str) -> list[int]:
    """Ids of the processes that train together, which a launcher has started, without their loader workers."""
    children = psutil.Process(started.pid).children()
    return [x.pid for x in children if any(word.endswith(f"{script}.py") for word in x.cmdline())]


def main() -> None:
    options = parse_options(Options, __doc__)
    folder = Path(options.folder)
    folder.mkdir(parents=True)
    config = write_config(folder, folder / "finished")
    for stage in (1, 2, 3, 4):
        launch(f"stage{stage}", "--config", str(config))
    moments = random.Random(options.seed)
    share = -(-options.kills // len(STAGES))
    done = [
        soak(
            folder / "finished",
            config,
            name,
            share,
            moments,
            folder / name,
            options.processes,
            options.sharded,
        )
        for name in STAGES
    ]
    print(f"{sum(x[0] for x in done)} kills; all {sum(x[1] for x in done)} finished runs equal the uninterrupted ones")


if __name__ == "__main__":
    run(main)
