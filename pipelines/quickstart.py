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
    for stage in (1, 2, 3, 4):
        call(f"stage{stage}", *sys.argv[1:])
    call("sample", "--run_dir", config.run_dir, "--num_images", "64", "--guidance", "3")
    call("evaluate", *sys.argv[1:])

    run_dir = Path(config.run_dir)
    newest = max((run_dir / "stage1" / "images").glob("*.png"))
    grid = max((run_dir / "samples").glob("grid_*.png"), key=lambda path: path.stat().st_mtime)
    print(f"\ndone in {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"reconstructions (rows: originals, from the top level only, from all levels): {newest}")
    print(f"samples: {grid}")
    print(f"report with metrics, samples of each class and curves: {run_dir / 'report.html'}")


def call(pipeline: str, *arguments: str) -> None:
    """Run another pipeline in a process of its own, as a user would."""
    command = [sys.executable, str(PIPELINES / f"{pipeline}.py"), *arguments]
    print(f"\n$ python pipelines/{pipeline}.py {shlex.join(arguments)}", flush=True)
    # passive waiting: threads that spin would take the cores from the worker processes that draw the images
    draws = pipeline in ("stage1", "stage2")
    environment = {**({"OMP_WAIT_POLICY": "PASSIVE"} if draws else {}), **os.environ}
    process = subprocess.Popen(command, env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the child was interrupted too, and saves first
        code = process.wait()
    if code != 0:
        raise UserError(f"{pipeline} stopped with exit code {code}: see its message above")


if __name__ == "__main__":
    run(main)
