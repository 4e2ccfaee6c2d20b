"""Tests of pipelines/benchmark.py."""

import json
from pathlib import Path

import pytest

from tests.conftest import refusal, succeed, write_config

SMALL = ["--repetitions", "1"]


@pytest.mark.parametrize(("what", "way"), [("stage1", "training step"), ("encode", "encoding")])
def test_measurement_is_printed_and_written(tmp_path: Path, what: str, way: str) -> None:
    """The measurement and its upper limit are reported with rates, share of the limit, memory, size and device."""
    config, output = write_config(tmp_path, tmp_path / "run"), tmp_path / "b.json"
    out = succeed("benchmark", "--config", str(config), "--what", what, "--output", str(output), *SMALL)
    ours, limit = json.loads(output.read_text())
    assert (ours["way"], limit["way"]) == (way, "bare convolutions")
    assert ours["share_of_limit"] == pytest.approx(ours["images_per_second"] / limit["images_per_second"])
    assert ours["peak_memory_gib"] > 0.05 and ours["size"] == "16x32" and ours["device"]
    assert way in out and "share_of_limit" in out
    assert not (tmp_path / "run").exists()


def test_priors_are_measured(tmp_path: Path) -> None:
    """A training step of each prior is compared with a matrix product; sampling is timed with and without a cache."""
    config, output = write_config(tmp_path, tmp_path / "run"), tmp_path / "b.json"
    succeed("benchmark", "--config", str(config), "--what", "prior,sample", "--output", str(output), *SMALL)
    rows = json.loads(output.read_text())
    steps = [x for x in rows if x["what"] == "prior"]
    assert [x["way"] for x in steps] == [
        "training step, top",
        "matrix product",
        "training step, bottom",
        "matrix product",
    ]
    for ours, limit in zip(steps[::2], steps[1::2], strict=True):
        assert ours["share_of_limit"] == pytest.approx(ours["gflop_per_second"] / limit["gflop_per_second"])
    samples = [x for x in rows if x["what"] == "sample" and "size" in x]
    assert {(x["way"], x["batch_size"]) for x in samples} == {
        (f"{way}, {level}", n)
        for way, batches in (("waves", (1, 2, 16, 64)), ("whole passes", (1, 2)))
        for level in ("top", "bottom")
        for n in batches
    }
    assert {x["size"] for x in samples} >= {"16x16", "32x32", "64x64", "128x128"}
    assert all(0 < x["share_of_limit"] < 2 for x in samples[:-4] if "waves" in x)
    for x in samples:
        height, width = map(int, x["size"].split("x"))
        assert x["images_per_hour"] * x["seconds_per_code"] * height * width == pytest.approx(3600 * x["batch_size"])
    for x in (x for x in rows if "seconds_per_batch" in x):
        levels = [
            3600 * x["batch_size"] / y["images_per_hour"]
            for y in samples[:-4]
            if y["batch_size"] == x["batch_size"] and y["way"].split(",")[0] == x["way"].split(",")[0]
        ]
        assert len(levels) == 2 and x["seconds_per_batch"] == pytest.approx(sum(levels))
        assert x["images_per_hour"] == pytest.approx(3600 * x["batch_size"] / x["seconds_per_batch"])
    assert sum("seconds_per_batch" in x for x in rows) == 6


def test_data_is_measured(tmp_path: Path) -> None:
    """Decoding of small and large photographs and random reads of codes are timed."""
    config, output = write_config(tmp_path, tmp_path / "run"), tmp_path / "b.json"
    succeed("benchmark", "--config", str(config), "--what", "images,codes", "--output", str(output), *SMALL)
    small, large, codes = json.loads(output.read_text())
    assert small["images_per_second"] > large["images_per_second"] > 1
    assert codes["images_per_second"] > 100
    assert 8 + 64 < codes["bytes_per_image"] < 1000


def test_unknown_measurement_is_refused(tmp_path: Path) -> None:
    """The message names the unknown measurement and lists the available ones."""
    message = refusal("benchmark", "--what", "stage9", "--output", str(tmp_path / "b.json"))
    assert "stage9" in message and "stage1" in message
