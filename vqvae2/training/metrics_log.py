"""The metrics.jsonl file: one line of metrics for each logged step and each validation."""

import json
from pathlib import Path
from typing import Any

from vqvae2.run.directory import write_atomically, writing


class MetricsLog:
    """Appends lines to metrics.jsonl; on resume, lines after the checkpoint's step are removed first."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        write_atomically(path, "".join(line + "\n" for line in lines if _step_of(line) <= first_step).encode())

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Append a line with the number of updates, the split (`train` or `validation`) and the metrics."""
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics.jsonl file; empty if the file does not exist."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) < float("inf")]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # an incomplete line of a process that was killed while writing
