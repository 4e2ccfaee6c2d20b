"""Parts of an evaluation: each stores its results in a folder and is recomputed only if its inputs have changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vqvae2.run.directory import make_dir, read_record, write_atomically
from vqvae2.run.launch import refusals_reach_all


def part_dir(evaluation: Path, name: str, made_of: dict[str, Any], accelerator: Accelerator) -> Path:
    """Return the folder of a part, emptied if the inputs of the part have changed.

    Recorded inputs that are not in `made_of` are ignored, because earlier versions recorded more inputs.

    Args:
        evaluation: the folder of all parts.
        name: name of the part.
        made_of: all inputs that its results depend on, serializable as JSON.
        accelerator: the accelerator; its processes wait for one another.
    """
    directory = evaluation / name
    with refusals_reach_all(accelerator):
        if accelerator.is_main_process:
            record, wanted = directory / "made_of.json", json.loads(json.dumps(made_of))
            recorded = {key: x for key, x in read_record(record).items() if key in wanted}
            if directory.exists() and recorded != wanted:
                print(f"{directory}: inputs have changed: starting over")
                shutil.rmtree(directory)
            make_dir(directory)
            write_atomically(record, json.dumps(made_of, indent=2, sort_keys=True).encode())
    return directory


def found(directory: Path, compute: Callable[[], dict[str, Any]], accelerator: Accelerator) -> dict[str, Any]:
    """Read the metrics of a part from its figures.json, or compute them on all processes and write that file.

    Args:
        directory: folder of the part.
        compute: computes the metrics; those of the main process are written.
        accelerator: the accelerator; its processes wait for one another.
    """
    path = directory / "figures.json"
    known = path.exists()
    accelerator.wait_for_everyone()  # all processes have to check for the file before it is written
    if not known:
        metrics = compute()
        with refusals_reach_all(accelerator):
            if accelerator.is_main_process:
                write_atomically(path, json.dumps(metrics, indent=2).encode())
    return json.loads(path.read_text())
