"""metrics.jsonl: one line of metrics for each logged step and each validation."""

import json
from pathlib import Path
from typing import Any

from vqvae2.run.directory import write_atomically, writing


class MetricsLog:
    """Appends lines; on resume, lines after the checkpoint's step are cut off first."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        write_atomically(path, "".join(line + "\n" for line in lines if _step_of(line) <= first_step).encode())

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """One line: the number of updates done, `train` or `validation`, and the metrics."""
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; empty where it is not there."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) < float("inf")]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line, from a process that was killed while writing
