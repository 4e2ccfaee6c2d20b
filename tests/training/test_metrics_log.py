"""metrics.jsonl when training is resumed."""

import json
from pathlib import Path

from vqvae2.training.metrics_log import MetricsLog


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    """On resume from step 4, lines of later steps are removed and new lines are appended."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (2, 4, 6):
        log.write(step, "train", {"loss": step / 2})
    log.write(4, "validation", {"mse": 0.5})
    MetricsLog(path, 4).write(6, "train", {"loss": 9.0})
    assert lines(path) == [
        {"step": 2, "split": "train", "loss": 1.0},
        {"step": 4, "split": "train", "loss": 2.0},
        {"step": 4, "split": "validation", "mse": 0.5},
        {"step": 6, "split": "train", "loss": 9.0},
    ]


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    """A partial line, left by a killed process, is removed."""
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 0).write(2, "train", {"loss": 1.0})
    whole = path.read_text()
    for cut in range(1, len(whole) - 1):
        path.write_text(whole + whole[:cut])
        MetricsLog(path, 2).write(3, "train", {"loss": 2.0})
        assert [line["step"] for line in lines(path)] == [2, 3]


def test_line_without_its_end_is_not_glued_to_the_next(tmp_path: Path) -> None:
    """A last line without a newline leaves the file readable."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "split": "train"}')
    MetricsLog(path, 2).write(3, "train", {})
    assert [line["step"] for line in lines(path)] in ([1, 3], [1, 2, 3])


def test_new_run_begins_anew(tmp_path: Path) -> None:
    """A run from step 0 removes all lines of an earlier run."""
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 0).write(1, "train", {"loss": 1.0})
    MetricsLog(path, 0)
    assert path.read_text() == ""
