"""pipelines/benchmark.py as a user calls it."""

import json
from pathlib import Path

import pytest

from tests.conftest import call, succeed, write_config

SMALL = ["--repetitions", "1"]


@pytest.mark.parametrize(("what", "way"), [("stage1", "training step"), ("encode", "encoding")])
def test_measurement_is_printed_and_written(tmp_path: Path, what: str, way: str) -> None:
    """Ours and its limit, with the rate of each, the share, the memory and the device."""
    config, output = write_config(tmp_path, tmp_path / "run"), tmp_path / "b.json"
    out = succeed("benchmark", "--config", str(config), "--what", what, "--output", str(output), *SMALL)
    ours, limit = json.loads(output.read_text())
    assert (ours["way"], limit["way"]) == (way, "bare convolutions")
    assert ours["share_of_limit"] == pytest.approx(ours["images_per_second"] / limit["images_per_second"])
    assert ours["peak_memory_gib"] > 0.05 and ours["size"] == "16x32" and ours["device"]
    assert way in out and "share_of_limit" in out
    assert not (tmp_path / "run").exists()


def test_unknown_measurement_is_refused(tmp_path: Path) -> None:
    """The message lists what there is."""
    result = call("benchmark", "--what", "stage9", "--output", str(tmp_path / "b.json"))
    assert result.returncode == 1 and "stage9" in result.stderr and "stage1" in result.stderr
    assert "Traceback" not in result.stderr
