"""Kill every training stage at random moments, go on by the same command, and compare with a run that was left alone.

    python -m tests.by_hand.soak --kills 200 --folder /tmp/soak

The weights must be the same bits, and metrics.jsonl the same but for seconds and images per second.
"""

import json
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

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
    """How long to go on.

    Attributes:
        folder: where the runs are kept; has to be new.
        kills: how many processes are killed.
        seed: of the moments.
    """

    folder: str
    kills: int = 200
    seed: int = 0


def flags_of(config: Path, name: str, run_dir: Path) -> tuple[str, list[str], Path]:
    """The script, the flags and the folder of a stage that saves every few steps."""
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


def soak(finished: Path, config: Path, name: str, kills: int, moments: random.Random, folder: Path) -> tuple[int, int]:
    """Train a stage and kill it, as often as it takes to kill it `kills` times: (kills, comparisons).

    Args:
        finished: a run directory whose stages 1 to 4 have finished.
        config: its configuration.
        name: of the stage.
        kills: how many at least.
        moments: draws when to kill.
        folder: for the runs.
    """
    script, flags, directory = flags_of(config, name, folder / "alone")
    shutil.copytree(finished, folder / "alone")
    shutil.rmtree(directory)
    began = time.monotonic()
    succeed(script, *flags)
    longest = (time.monotonic() - began) / 6
    expected = outcome(directory)
    script, flags, directory = flags_of(config, name, folder / "killed")
    done = compared = 0
    while done < kills:
        shutil.rmtree(folder / "killed", ignore_errors=True)
        shutil.copytree(finished, folder / "killed")
        shutil.rmtree(directory)
        while not (directory / "model.json").exists():
            with running(script, *flags) as process:
                while process.poll() is None and not holds(directory, process.pid):
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, longest) if done < kills else 0)
                if process.poll() is None and done < kills:
                    process.send_signal(signal.SIGKILL)
                    done += 1
                process.communicate()
        again = call(script, *flags)
        assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
        weights, lines = outcome(directory)
        assert weights == expected[0], f"{name}: other weights in {directory} than in {folder / 'alone'}"
        assert lines == expected[1], f"{name}: another metrics.jsonl in {directory} than in {folder / 'alone'}"
        compared += 1
        print(f"{name}: the same after {done} kills", flush=True)
    return done, compared


def holds(directory: Path, process: int) -> bool:
    """Whether a process has begun to train there."""
    try:
        return json.loads((directory / "lock").read_text())["process"] == process
    except (FileNotFoundError, ValueError):
        return False


def main() -> None:
    options = parse_options(Options, __doc__)
    folder = Path(options.folder)
    folder.mkdir(parents=True)
    config = write_config(folder, folder / "finished")
    for stage in (1, 2, 3, 4):
        succeed(f"stage{stage}", "--config", str(config))
    moments = random.Random(options.seed)
    share = -(-options.kills // len(STAGES))
    done = [soak(folder / "finished", config, name, share, moments, folder / name) for name in STAGES]
    print(f"{sum(x[0] for x in done)} kills, {sum(x[1] for x in done)} runs the same as those left alone")


if __name__ == "__main__":
    run(main)
