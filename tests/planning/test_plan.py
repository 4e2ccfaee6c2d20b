"""pipelines/plan.py: its table, what it says where a stage does not fit, and bad input."""

import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT, refusal, write_config
from vqvae2.planning.devices import device_called, this_device
from vqvae2.planning.remedies import remedy
from vqvae2.planning.stages import training_stages
from vqvae2.run.command_line import parse_config


def planned(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run the script in this process and return what it prints."""
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "pipelines" / "plan.py"), run_name="__main__")
    assert ended.value.code == 0
    return said.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table by the name of the row."""
    lines = (re.split(r"  +", line.strip()) for line in text.splitlines())
    return {line[0]: line[1:] for line in lines if len(line) > 1}


@pytest.mark.parametrize(
    ("name", "gib", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "cpu"),
        ("NVIDIA H100 80GB HBM3", 79.2, "h100"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, "cpu"),
        ("NVIDIA L4", 22.0, "cpu"),
    ],
)
def test_the_default_device_has_the_name_and_the_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, gib: float, device: str
) -> None:
    gpu = SimpleNamespace(name=name, total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert this_device() == device


def test_processes_of_one_machine_share_its_memory() -> None:
    assert device_called("cpu", 2).memory_gib == device_called("cpu").memory_gib / 2
    assert device_called("a100", 2) == device_called("a100")


def test_table_has_steps_passes_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes follow from steps, batch and images; waves from the grids; nothing is written."""
    config = write_config(tmp_path, tmp_path / "run")
    out = planned(monkeypatch, "--config", str(config), "--device", "a100", "--processes", "2", "--num_images", "64")
    table = rows(out)
    assert table["images of a process in a pass"] == ["4", "10", "4", "4"]
    assert table["passes over the images"] == ["0.5"] * 3 and table["steps"] == ["4"] * 3
    assert table["fits in 72 GiB"] == ["yes"] * 4 and "does not fit" not in out
    assert "assumed" in out and not (tmp_path / "run").exists()


def test_speed_of_the_cpu_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On cpu, the share of a matrix product's rate is measured for each stage."""
    out = planned(monkeypatch, "--config", str(write_config(tmp_path, tmp_path / "run")), "--device", "cpu")
    shares = re.findall(r"(\d+)% measured", out)
    assert len(shares) == 3 and "assumed" not in out


def test_a_remedy_is_named_and_fits(tmp_path: Path) -> None:
    """Where a step is too large, accumulation steps are named with which it fits; too small a memory is said, too."""
    config, _ = parse_config(["--config", str(write_config(tmp_path, tmp_path / "run"))])
    stage = training_stages(config, 8)[2]
    cost = stage.cost(64, 1, False, "no")
    limit = cost.peak / 2
    line = remedy(stage, {False: cost}, 64, "no", limit)
    named = re.fullmatch(
        r"prior bottom: --priors.bottom.train.gradient_accumulation_steps (\d+) \(batch (\d+), .*", line
    )
    assert named, line
    accumulation, batch = map(int, named.groups())
    assert accumulation * batch == 64 and stage.cost(batch, accumulation, False, "no").peak <= limit
    assert "more memory" in remedy(stage, {False: cost}, 64, "no", cost.parameters)


def test_sharding_is_named_where_the_state_is_too_large(tmp_path: Path) -> None:
    """Where parameters and gradients fit with few images but the optimizer state does not, sharding is the remedy."""
    config, _ = parse_config(["--config", str(write_config(tmp_path, tmp_path / "run"))])
    stage = training_stages(config, 8)[1]
    whole, one = (stage.cost(batch, accumulation, False, "no", 4) for batch, accumulation in ((8, 1), (1, 2)))
    limit = (one.peak + one.sharded().peak) / 2
    line = remedy(stage, {False: whole}, 8, "no", limit, 4)
    assert "--priors.top.train.shard_optimizer true (batch" in line
    assert "more memory" in remedy(stage, {False: whole}, 8, "no", limit, 1)
    sharded = stage._replace(train=replace(stage.train, shard_optimizer=True))
    assert "shard_optimizer" not in remedy(sharded, {False: whole}, 8, "no", limit, 4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--device", "h900"), ("h900", "h100", "cpu")),
        (("--device", "h100", "--processes", "3"), ("stage1.batch_size", "8", "3 processes")),
        (("--device", "h100", "--processes", "0"), ("processes", "1 or more")),
        (("--device", "h100", "--num_images", "-1"), ("num_images", "1 or more")),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    """An unknown device lists the valid ones; processes that do not divide the batch are refused with the numbers."""
    message = refusal("plan", "--config", str(write_config(tmp_path, tmp_path / "run")), *flags)
    assert all(word in message for word in words), message
