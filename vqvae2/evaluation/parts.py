"""The parts of an evaluation: each keeps what it found in a folder, and is made again only where its inputs changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vqvae2.run.directory import make_dir, write_atomically
from vqvae2.run.launch import refusals_reach_all


def part_dir(evaluation: Path, name: str, made_of: dict[str, Any], accelerator: Accelerator) -> Path:
    """The folder of a part, emptied if its inputs have changed.

    What the folder's record holds beyond `made_of` does not count: results once depended on more.

    Args:
        evaluation: the folder of all parts.
        name: of the part.
        made_of: all that its results depend on, as JSON holds it.
        accelerator: of the processes, which wait for one another.
    """
    directory = evaluation / name
    with refusals_reach_all(accelerator):
        if accelerator.is_main_process:
            record, wanted = directory / "made_of.json", json.loads(json.dumps(made_of))
            recorded = {key: x for key, x in _read_record(record).items() if key in wanted}
            if directory.exists() and recorded != wanted:
                print(f"{directory}: inputs have changed: starting over")
                shutil.rmtree(directory)
            make_dir(directory)
            write_atomically(record, json.dumps(made_of, indent=2, sort_keys=True).encode())
    return directory


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}  # not there, or damaged


def found(directory: Path, compute: Callable[[], dict[str, Any]], accelerator: Accelerator) -> dict[str, Any]:
    """The metrics of a part: as its figures.json holds them, else computed by all processes and written by the first.

    Args:
        directory: of the part.
        compute: the metrics; what the first process returns counts.
        accelerator: of the processes.
    """
    path = directory / "figures.json"
    known = path.exists()
    accelerator.wait_for_everyone()  # before anyone writes it
    if not known:
        metrics = compute()
        with refusals_reach_all(accelerator):
            if accelerator.is_main_process:
                write_atomically(path, json.dumps(metrics, indent=2).encode())
    return json.loads(path.read_text())
