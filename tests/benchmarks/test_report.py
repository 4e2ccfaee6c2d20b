"""The table of measurements and the results file."""

import json
from pathlib import Path

import pytest

from vqvae2.benchmarks.report import append_rows, table
from vqvae2.errors import UserError

ROWS = [{"what": "a", "images_per_second": 12.345, "share": 0.5}, {"what": "longer", "images_per_second": 12345.6}]


def test_table_has_a_column_for_each_figure() -> None:
    """Each metric has a column; numbers below 1000 have three significant digits, and missing metrics are blank."""
    assert table(ROWS).splitlines() == [
        "what    images_per_second  share",
        "a       12.3               0.5",
        "longer  12346",
    ]


def test_file_grows_by_each_measurement(tmp_path: Path) -> None:
    """Rows are appended to those of an earlier run, each with a timestamp and the PyTorch version."""
    path = tmp_path / "b.json"
    append_rows(path, ROWS[:1])
    append_rows(path, ROWS[1:])
    rows = json.loads(path.read_text())
    assert [x["what"] for x in rows] == ["a", "longer"] and rows[0]["images_per_second"] == 12.345
    assert all(x["time"] and x["torch"] for x in rows)
    assert [x.name for x in tmp_path.iterdir()] == ["b.json"]


@pytest.mark.parametrize("text", ["{}", "[1,", ""])
def test_foreign_file_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    """A file that does not contain a list of measurements is named in the error and not modified."""
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"b\.json.*--output"):
        append_rows(path, ROWS)
    assert path.read_text() == text
