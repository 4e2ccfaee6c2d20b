"""Memory, start-up and throughput with a thousand, a hundred thousand and a million pictures.

    python -m tests.by_hand.million --counts 1000,100000,1000000 --folder /tmp/million

makes the names with hard links to a few hundred small files, and prints a line of JSON for each measurement. `--parts`
chooses among survey, again, start, workers, stage2, pipelines and two_processes; start, workers and stage2 need the
survey. Each one runs in a process of its own, and the folder is removed at the end. The last two parts run the scripts
of stages 1 to 4, on one and two processes. Memory is read from /proc/PID/smaps in bytes by psutil: `private` (USS),
`share` (PSS) and `resident` (RSS).

The other parts use only what earlier versions have as well, so that they measure them, too:
`PYTHONPATH=OLD python tests/by_hand/million.py ...`.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from PIL import Image

from vqvae2.codes import extraction
from vqvae2.codes.format import Header
from vqvae2.codes.store import CodeStore
from vqvae2.config import ImagesConfig, LevelGrid
from vqvae2.images import sources
from vqvae2.images.loading import load_batches
from vqvae2.images.shapes import render
from vqvae2.images.survey import open_surveyed
from vqvae2.run.launch import start_accelerator
from vqvae2.training.order import StepOrder

ORIGINALS = 300  # ext4 allows 65,000 hard links to a file
CLASSES = 100
SIDE = 16
BATCH = 64
WORKERS = 2


def make_pictures(folder: Path, count: int) -> Path:
    """Make `count` names in class folders, hard links to a few hundred JPEG files of drawn shapes."""
    root, originals = folder / f"pictures_{count}", folder / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    for i in range(ORIGINALS):
        drawn = render((0, "train", i), i % 8, (SIDE, SIDE))
        (drawn if isinstance(drawn, Image.Image) else Image.fromarray(drawn)).save(originals / f"{i}.jpg")
    for c in range(CLASSES):
        (root / f"class_{c:03d}").mkdir(parents=True)
    for i in range(count):
        os.link(originals / f"{i % ORIGINALS}.jpg", root / f"class_{i % CLASSES:03d}" / f"picture_{i:07d}.jpg")
    return root


def memory(process: psutil.Process) -> dict[str, int]:
    """Private, proportional and resident memory in bytes."""
    found = process.memory_full_info()
    return {"private": found.uss, "share": found.pss, "resident": found.rss}


def configuration(folder: Path, count: int) -> Any:
    """What `open_surveyed` reads of a configuration."""
    images = ImagesConfig(source="folder", root=str(folder / f"pictures_{count}"), size=SIDE, workers=WORKERS)
    return SimpleNamespace(images=images, run_dir=str(folder / f"run_{count}"), seed=0)


def opened(folder: Path, count: int) -> tuple[sources.Splits, float]:
    """Open the images as a stage does, and return them and the seconds that it took."""
    accelerator = start_accelerator("stage1", "no")
    start = time.perf_counter()
    splits = open_surveyed(configuration(folder, count), accelerator)
    return splits, time.perf_counter() - start


def survey(folder: Path, count: int) -> dict[str, Any]:
    """Survey all files."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    splits, seconds = opened(folder, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = sum(path.stat().st_size for path in (folder / f"run_{count}" / "survey").iterdir())
    return {
        "seconds": seconds, "files_per_second": count / seconds, "record_bytes": record, "peak_growth": peak - before,
        **memory(psutil.Process()), "images": len(splits.train) + len(splits.validation),
    }  # fmt: skip


def again(folder: Path, count: int) -> dict[str, Any]:
    """Open the images again before training has begun, which lists the folder to find what has changed."""
    return {"seconds": opened(folder, count)[1]}


def begin_to_train(run: Path) -> None:
    """Mark a run as one that has begun to train, so that its survey stands."""
    (run / "stage1" / "checkpoints" / "step_00000001").mkdir(parents=True, exist_ok=True)
    (run / "stage1" / "config.yaml").write_text("seed: 0\n")


def start(folder: Path, count: int) -> dict[str, Any]:
    """Open the images of a run that has a survey, and load a first batch without workers."""
    begin_to_train(folder / f"run_{count}")
    start_accelerator("stage1", "no")
    before = memory(psutil.Process())
    splits, seconds = opened(folder, count)
    next(load_batches(splits.train, StepOrder(len(splits.train), BATCH, 0, 0), 0))
    after = memory(psutil.Process())
    return {"seconds": seconds, **{f"{name}_growth": after[name] - before[name] for name in after}}


def workers(folder: Path, count: int) -> dict[str, Any]:
    """Go through all training images once with worker processes, which do not decode; memory before and after."""
    splits, _ = opened(folder, count)
    pixel = torch.zeros(3, 1, 1, dtype=torch.uint8)
    sources.read_image = lambda *_: pixel  # names and labels are read, and the paths are built
    order = StepOrder(len(splits.train), BATCH, 0, 0)
    batches = load_batches(splits.train, order, WORKERS)
    begin = time.perf_counter()
    for _ in islice(batches, len(splits.train) // BATCH):
        pass
    seconds = time.perf_counter() - begin
    children = [memory(child) for child in psutil.Process().children()]
    return {
        "pictures_per_second": len(splits.train) / seconds,
        **{f"worker_{name}": max(child[name] for child in children) for name in children[0]},
        **{f"main_{name}": value for name, value in memory(psutil.Process()).items()},
    }


def stage2(folder: Path, count: int) -> dict[str, Any]:
    """Write the codes of all images as stage 2 does, without decoding and without an autoencoder: 16x16 and 8x8."""
    splits, _ = opened(folder, count)
    pixel = torch.zeros(3, 1, 1, dtype=torch.uint8)
    sources.read_image = lambda *_: pixel
    levels = [LevelGrid("top", 8, 8, 512), LevelGrid("bottom", 16, 16, 512)]

    class Encoder:
        def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {x.name: torch.randint(512, (len(images), x.height, x.width)) for x in levels}

    path = folder / f"codes_{count}.lmdb"
    header = Header(levels, splits.train.classes, len(splits.train), "no", "none")
    begin = time.perf_counter()
    accelerator = start_accelerator("stage2", "no")
    extraction.extract_codes(Encoder(), splits.train, path, header, 128, WORKERS, accelerator)
    seconds = time.perf_counter() - begin
    store = CodeStore(path)
    assert len(store) == len(splits.train) and store[len(store) - 1].name == splits.train.names[len(store) - 1]
    size = (path / "data.mdb").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shutil.rmtree(path)
    return {"seconds": seconds, "records": len(store), "records_per_second": len(store) / seconds,
            "store_bytes": size, "peak_resident": peak}  # fmt: skip


def pipelines(folder: Path, count: int, processes: int | None = None) -> dict[str, Any]:
    """Run stages 1 to 4 of a tiny model from the command line, the first one twice: with and without the survey.

    All stages but the second take four steps.
    """
    sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests`; vqvae2 has been imported
    from tests.conftest import launch, write_config

    run_dir = folder / f"pipelines_{count}_{processes}"
    images = {"source": "folder", "root": folder / f"pictures_{count}", "size": SIDE, "workers": WORKERS}
    flags = [
        "--config",
        str(write_config(folder, run_dir)),
        "--images.max_images",
        "null",
        "--stage2.batch_size",
        "128",
    ]
    flags += [x for key, value in images.items() for x in (f"--images.{key}", str(value))]
    stages = {
        "first": ("stage1", []),
        "second": ("stage1", ["--stage1.total_steps", "8"]),
        "stage2": ("stage2", []),
        "stage3": ("stage3", []),
        "stage4": ("stage4", []),
    }
    seconds = {}
    for name, (script, more) in stages.items():
        begin = time.perf_counter()
        launch(script, *flags, *more, processes=processes, timeout=7200)
        seconds[name] = time.perf_counter() - begin
    store = CodeStore(run_dir / "codes" / "train.lmdb")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    shutil.rmtree(run_dir)
    return {"seconds": seconds, "records": len(store), "largest_process": peak}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "survey": survey,
    "again": again,
    "start": start,
    "workers": workers,
    "stage2": stage2,
    "pipelines": pipelines,
    "two_processes": partial(pipelines, processes=2),
}


def measure(part: str, folder: Path, count: int) -> None:
    """Run a part in a process of its own and print its result."""
    command = [sys.executable, __file__, "--folder", str(folder), "--part", part, "--count", str(count)]
    result = subprocess.run(command, capture_output=True, text=True)
    print(result.stdout.strip().splitlines()[-1] if result.returncode == 0 else result.stderr, flush=True)


def main() -> None:
    """Parse the arguments, make the pictures and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/million"))
    parser.add_argument("--counts", default="1000,100000,1000000")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        found = PARTS[given.part](given.folder, given.count)
        print(json.dumps({"part": given.part, "count": given.count, **found}))
        return
    try:
        for count in map(int, given.counts.split(",")):
            make_pictures(given.folder, count)
            for part in given.parts.split(","):
                measure(part, given.folder, count)
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
