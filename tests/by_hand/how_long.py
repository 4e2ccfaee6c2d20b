"""Train all stages of a configuration in several times, and draw the same samples after each: how long do I train?

    python -m tests.by_hand.how_long --config configs/leaves256.yaml --like runs/leaves256 --folder runs/how_long

Every time is a run of its own, with schedules that end with it. Stages 1 and 2 use all cores. Then two processes train
the priors, with half of the cores each: one that of the second level, the other one those of all other levels. The
numbers of steps are those of the configuration times one factor, which follows from the speed of the stages of the run
`--like`, trained in the same way on the same machine. A finished run is not trained again. Writes how_long.png and
how_long.md into the folder.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from vqvae2 import Generator
from vqvae2.config import Stage2Config
from vqvae2.errors import UserError
from vqvae2.planning.devices import usable_cores
from vqvae2.run.command_line import parse_options, run
from vqvae2.run.directory import stage_dir

PIPELINES = Path(__file__).parents[2] / "pipelines"
SHARE_OF_STAGE2 = 0.1  # at most: if all images take longer, the priors learn from some
START = 10.0  # seconds a stage takes before its first step and after its last one, by experience on two cores
ENCODING = 5  # images encoded in the time that training takes for one; measured with leaves256.yaml
HELD_OUT = 64  # validation of more would take a share of the shortest runs
COLUMNS = 8
TILE = 96  # pixels of a sample in the picture
MARGIN = 72  # pixels for the minutes


@dataclass(frozen=True)
class Options:
    """Options of the script.

    Attributes:
        config: configuration file.
        like: directory of a run of this configuration on this machine, whose speed is taken.
        minutes: minutes of all stages, separated by commas.
        folder: folder of the runs and of the result.
        guidance: guidance of the samples.
        temperature: temperature of the samples.
    """

    config: str
    like: str
    folder: str
    minutes: str = "2,5,10,20,40,60"
    guidance: float = 1.5
    temperature: float = 0.85


def figures(directory: Path, split: str, name: str) -> list[float]:
    """All values of a figure in the log of a stage."""
    lines = (json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if line["split"] == split and name in line]


@dataclass(frozen=True)
class Training:
    """A model that a stage trains.

    Attributes:
        section: the flags' section.
        settings: its values in the configuration.
        directory: where the stage writes.
    """

    section: str
    settings: dict
    directory: Path


def trainings(config: dict, run_dir: Path) -> list[Training]:
    """The models that the stages train: the autoencoder, then the priors, the coarsest level first."""
    levels = [level["name"] for level in config["autoencoder"]["levels"]]
    models = [Training("stage1", config["stage1"], stage_dir(run_dir, 1))]
    for i, name in enumerate(levels):
        directory = stage_dir(run_dir, 4, name) if i else stage_dir(run_dir, 3)
        models.append(Training(f"priors.{name}.train", config["priors"][name]["train"], directory))
    return models


def flags_for(config: dict, like: Path, seconds: float) -> list[str]:
    """The flags with which all stages take that time."""
    left = seconds - START * (3 + (len(config["autoencoder"]["levels"]) > 2))  # stages one after another
    flags = ["--images.validation_root", "null"]
    models = trainings(config, like)
    speeds = [median(figures(training.directory, "train", "images_per_second")) for training in models]
    copies = Stage2Config(**config["stage2"]).copies
    total = sum(1 for path in Path(config["images"]["root"]).rglob("*") if path.is_file())
    encoding = min(SHARE_OF_STAGE2 * left, copies * total / (ENCODING * speeds[0]))
    images = [training.settings["total_steps"] * training.settings["batch_size"] for training in models]
    autoencoder, *priors = [count / speed for count, speed in zip(images, speeds, strict=True)]
    second_level = sum(priors[1:2])
    factor = (left - encoding) / (autoencoder + max(second_level, sum(priors) - second_level))
    for training in models:
        steps = round(factor * training.settings["total_steps"])
        if steps < 4:
            raise UserError(f"{seconds / 60:g} minutes: {training.section} would have {steps} steps: give more minutes")
        chosen = {
            "total_steps": steps,
            "warmup_steps": min(training.settings["warmup_steps"], steps // 6),
            "validate_every": steps,
        }
        flags += [x for key, value in chosen.items() for x in (f"--{training.section}.{key}", str(value))]
        if training.section == "stage1":
            flags += ["--autoencoder.continuous_steps", str(min(config["autoencoder"]["continuous_steps"], steps // 6))]
    encoded = round(encoding * ENCODING * speeds[0] / copies)
    flags += ["--images.validation_fraction", f"{HELD_OUT / total:.4f}"]
    return [*flags, *(["--images.max_images", str(encoded)] if encoded < total - HELD_OUT else [])]


def call_all(stages: list[tuple[str, list[str]]], cores: int) -> None:
    """Run stages with the given arguments, one after another."""
    for stage, arguments in stages:
        command = [sys.executable, str(PIPELINES / f"{stage}.py"), *arguments]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(cores)})


def trained(options: Options, config: dict, minutes: float) -> Path:
    """Train a run for a time, or find it finished; returns its directory."""
    run_dir = Path(options.folder) / f"{minutes:g}_minutes"
    finished = run_dir / "seconds.json"
    if finished.exists():
        return run_dir
    given = ["--config", options.config, "--run_dir", str(run_dir)]
    given += flags_for(config, Path(options.like), 60 * minutes)
    levels = [level["name"] for level in config["autoencoder"]["levels"]]
    one_after_another = [("stage3", given), *(("stage4", [*given, "--level", name]) for name in levels[2:])]
    beside_them = [("stage4", [*given, "--level", name]) for name in levels[1:2]]
    began = time.monotonic()
    call_all([("stage1", given), ("stage2", given)], usable_cores())
    with ThreadPoolExecutor() as pool:
        half = max(1, usable_cores() // 2)
        for running in [pool.submit(call_all, stages, half) for stages in (one_after_another, beside_them)]:
            running.result()
    finished.write_text(json.dumps(time.monotonic() - began))
    return run_dir


def row_of(run_dir: Path, minutes: float, options: Options) -> Image.Image:
    """The minutes and samples of a run, the same numbers of images and classes for every run."""
    generator = Generator.from_run(run_dir)
    labels = [i % len(generator.classes) for i in range(COLUMNS)] if generator.classes else None
    guidance = options.guidance if labels else 1.0
    samples = generator.sample(COLUMNS, labels, guidance=guidance, temperature=options.temperature)
    row = Image.new("RGB", (MARGIN + COLUMNS * TILE, TILE), "white")
    ImageDraw.Draw(row).text((8, TILE // 2 - 8), f"{minutes:g} min", fill="black", font=ImageFont.load_default(16))
    for i, sample in enumerate(samples.permute(0, 2, 3, 1).numpy()):
        tile = Image.fromarray(np.squeeze(sample)).resize((TILE, TILE), Image.Resampling.LANCZOS)
        row.paste(tile, (MARGIN + i * TILE, 0))
    return row


def line_of(run_dir: Path, minutes: float, config: dict) -> str:
    """The line of a run in the table."""
    autoencoder, *priors = [training.directory for training in trainings(config, run_dir)]
    steps = [figures(directory, "train", "step")[-1] for directory in (autoencoder, *priors)]
    psnr = figures(autoencoder, "validation", "psnr")[-1]
    nats = [
        f"{figures(prior, 'validation', 'nats_per_code')[-1]:.2f} ({figures(prior, 'train', 'nats_per_code')[-1]:.2f})"
        for prior in priors
    ]
    took = json.loads((run_dir / "seconds.json").read_text()) / 60
    cells = [f"{minutes:g}", f"{took:.1f}", ", ".join(map(str, steps)), f"{psnr:.1f}", *nats]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    options = parse_options(Options, __doc__)
    config = yaml.safe_load(Path(options.config).read_text())
    times = [float(x) for x in options.minutes.split(",")]
    columns = ["minutes asked", "minutes taken", "steps", "PSNR, dB"]
    columns += [f"{level['name']}, nats (training)" for level in config["autoencoder"]["levels"]]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    rows = []
    for minutes in times:
        run_dir = trained(options, config, minutes)
        rows.append(row_of(run_dir, minutes, options))
        lines.append(line_of(run_dir, minutes, config))
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for i, row in enumerate(rows):
        picture.paste(row, (0, i * TILE))
    folder = Path(options.folder)
    picture.save(folder / "how_long.png")
    (folder / "how_long.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
