"""Run all stages, sampling and evaluation on a small scale, on images drawn on the fly; prints each command first."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from vqvae2.errors import UserError
from vqvae2.run.command_line import parse_config, run

PIPELINES = Path(__file__).parent


def main() -> None:
    config, _ = parse_config(description=__doc__)
    began = time.monotonic()
    for stages in (("stage1",), ("stage2",), ("stage3", "stage4")):  # the priors do not depend on each other
        call(*((stage, *sys.argv[1:]) for stage in stages))
    guidance = f"{config.evaluation.guidance:g}"
    call(("sample", "--run_dir", config.run_dir, "--num_images", "64", "--guidance", guidance))
    call(("evaluate", *sys.argv[1:]))

    run_dir = Path(config.run_dir)
    newest = max((run_dir / "stage1" / "images").glob("*.png"))
    grid = max((run_dir / "samples").glob("grid_*.png"), key=lambda path: path.stat().st_mtime)
    print(f"\ndone in {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"reconstructions (rows: originals, from the top level only, from all levels): {newest}")
    print(f"samples: {grid}")
    print(f"report with metrics, samples of each class and curves: {run_dir / 'report.html'}")


def call(*commands: tuple[str, ...]) -> None:
    """Run other pipelines, side by side if there are several, each in a process of its own, as a user would."""
    running = []
    for i, (pipeline, *arguments) in enumerate(commands):
        print(f"\n$ python pipelines/{pipeline}.py {shlex.join(arguments)}", flush=True)
        command = [sys.executable, str(PIPELINES / f"{pipeline}.py"), *arguments]
        running.append(subprocess.Popen(command, env={**settings(pipeline, len(commands), i), **os.environ}))
    try:
        codes = [process.wait() for process in running]
    except KeyboardInterrupt:  # the children were interrupted too, and save first
        codes = [process.wait() for process in running]
    for (pipeline, *_), code in zip(commands, codes, strict=True):
        if code != 0:
            raise UserError(f"{pipeline} stopped with exit code {code}: see its message above")


def settings(pipeline: str, processes: int, i: int) -> dict[str, str]:
    """Environment variables of the i-th of several processes that share the cores and the terminal."""
    if processes > 1:  # for models of this size, several processes are up to twice as fast as one with all threads
        from vqvae2.planning.devices import usable_cores  # not at the top: importing PyTorch slows --help down

        return {"OMP_NUM_THREADS": str(max(1, usable_cores() // processes)), "TQDM_POSITION": str(i)}
    # passive waiting: threads that spin would take the cores from the worker processes that draw the images
    return {"OMP_WAIT_POLICY": "PASSIVE"} if pipeline in ("stage1", "stage2") else {}


if __name__ == "__main__":
    run(main)
