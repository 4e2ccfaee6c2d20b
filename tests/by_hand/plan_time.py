"""Compare the seconds a step that plan.py finds for this machine's CPU with those of a short run.

    python -m tests.by_hand.plan_time --config configs/leaves256.yaml --folder /tmp/plan_time

plans, trains `--steps` steps of every stage, and prints a line for each. Other work on the machine changes both.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

from tests.by_hand.how_long import PIPELINES, figures, trainings
from vqvae2.run.command_line import parse_options, run

IMAGES = 256  # stage 2 would otherwise encode the whole data set


@dataclass(frozen=True)
class Options:
    """Options of the script.

    Attributes:
        config: configuration file.
        folder: folder of the run; it must not exist.
        steps: number of steps of each stage; the speed is that of the second half.
    """

    config: str
    folder: str
    steps: int = 24


def planned(config: str) -> list[float]:
    """The seconds a step of stage 1 and of each prior, the coarsest level first, according to plan.py."""
    command = [sys.executable, str(PIPELINES / "plan.py"), "--config", config, "--device", "cpu"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (row,) = (line for line in printed.splitlines() if line.startswith("seconds a step"))
    return [float(x) for x in re.findall(r"[\d.]+", row)]


def main() -> None:
    options = parse_options(Options, __doc__)
    run_dir = Path(options.folder)
    run_dir.mkdir(parents=True)
    config = yaml.safe_load(Path(options.config).read_text())
    models = trainings(config, run_dir)
    steps = {
        "total_steps": options.steps,
        "warmup_steps": 1,
        "validate_every": options.steps,
        "save_every": options.steps,
        "log_every": 2,
    }
    flags = ["--config", options.config, "--run_dir", options.folder, "--images.max_images", str(IMAGES)]
    flags += [x for model in models for key, value in steps.items() for x in (f"--{model.section}.{key}", f"{value}")]
    seconds = planned(options.config)
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        with open(run_dir / f"{stage}.txt", "w") as said:
            subprocess.run(
                [sys.executable, str(PIPELINES / f"{stage}.py"), *flags], check=True, stdout=said, stderr=said
            )
    for model, expected in zip(models, seconds, strict=True):
        speeds = figures(model.directory, "train", "images_per_second")
        taken = model.settings["batch_size"] / median(speeds[len(speeds) // 2 :])
        found = {"planned": expected, "taken": round(taken, 4), "ratio": round(expected / taken, 3)}
        print(json.dumps({"section": model.section, **found}), flush=True)


if __name__ == "__main__":
    run(main)
