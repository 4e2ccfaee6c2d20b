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
from accelerate import PartialState

from tests.conftest import ROOT, refusal, write_config
from vqvae2.planning.cost import encoding_cost
from vqvae2.planning.devices import GPUS, USABLE, device_called, this_device, usable_cores, usable_memory
from vqvae2.planning.fake import without_memory
from vqvae2.planning.loading import FILES
from vqvae2.planning.remedies import encoding_remedy, remedy
from vqvae2.planning.speed import cpu_speed
from vqvae2.planning.stages import random_images, training_stages
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
        ("NVIDIA H100 PCIe", 79.2, "cpu"),
        ("NVIDIA H100 NVL", 93.1, "cpu"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA H200 NVL", 139.8, "cpu"),
        ("NVIDIA GH200 144G HBM3e", 142.0, "cpu"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", 23.5, "cpu"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, "cpu"),
        ("NVIDIA L4", 22.0, "cpu"),
    ],
)
def test_the_default_device_has_the_name_and_the_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, gib: float, device: str
) -> None:
    """A GPU that is not listed is named, with the choices; its plan is that of the CPU."""
    gpu = SimpleNamespace(name=name, total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert this_device() == device
    said = capsys.readouterr().out
    if device == "cpu":
        assert said.startswith(f"{name} with {gib:.0f} GiB is not listed, so the figures are for the CPU")
        assert "--device h100, h200, a100, rtx4090 or cpu" in said
    else:
        assert said == ""


def test_processes_of_one_machine_share_its_memory() -> None:
    assert device_called("cpu", 2).memory_gib == device_called("cpu").memory_gib / 2
    assert device_called("a100", 2) == device_called("a100")


def test_the_memory_of_a_container_is_that_of_its_limit(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    whole = usable_memory(limit)  # there is no such file
    for content, usable in (("max\n", whole), (f"{2**30}\n", 2**30), (f"{2**60}\n", whole)):
        limit.write_text(content)
        assert usable_memory(limit) == usable


def test_table_has_steps_passes_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes follow from steps, batch and images; waves from the grids; nothing is written."""
    config = write_config(tmp_path, tmp_path / "run")
    flags = ["--device", "a100", "--processes", "2", "--num_images", "64", "--evaluation.num_samples", "1000000"]
    out = planned(monkeypatch, "--config", str(config), *flags)
    table = rows(out)
    assert table["waves to sample"] == ["7", "17"]  # W + 3 (H - 1) for grids of 2x4 and 4x8 codes
    hours, gib = map(float, re.findall(r"1,000,000 samples: at least (\S+) hours, at most (\S+) GiB", out)[0])
    assert gib == pytest.approx(1e6 * 16 * 32 * 3 / 2**30, rel=0.01)
    seconds = sum(map(float, table["seconds to sample 16, at least"]))
    assert hours == pytest.approx(seconds * 1e6 / 16 / 2 / 3600, rel=0.01)
    assert table["images of a process in a pass"] == ["4", "10", "4", "4"]
    assert table["passes over the images"] == ["0.5"] * 3 and table["steps"] == ["4"] * 3
    assert table["fits in 72 GiB"] == ["yes"] * 4 and "does not fit" not in out
    assert "assumed" in out and not (tmp_path / "run").exists()


def test_speed_of_the_cpu_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On cpu, the share of a matrix product's rate is measured for each stage, and loading takes time of the cores."""
    monkeypatch.setattr("vqvae2.planning.plan.loading_rates", lambda config: {"drawn": 4.0})
    monkeypatch.setattr("vqvae2.planning.speed.TIMED_SECONDS", 0.2)
    out = planned(monkeypatch, "--config", str(write_config(tmp_path, tmp_path / "run")), "--device", "cpu")
    shares = re.findall(r"(\d+)% measured", out)
    assert len(shares) == 3 and "assumed" not in out
    stage1, *priors = map(float, rows(out)["seconds a step"])
    loading = 8 / 4  # of a batch
    assert loading < stage1 < loading + 1 and max(priors) < 1
    out = planned(monkeypatch, "--config", str(tmp_path / "tiny.yaml"), "--device", "cpu", "--processes", "2")
    loading /= min(2, usable_cores())
    assert loading < float(rows(out)["seconds a step"][0]) < loading + 1


def test_speed_of_the_cpu_is_measured_without_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate would choose the GPU of a machine that has one, for the product and for the step."""

    def chosen(*arguments: object, **options: object) -> None:
        raise AssertionError("Accelerate chooses the device")

    config, _ = parse_config(["--config", str(write_config(tmp_path, tmp_path / "run"))])
    stage = training_stages(config, 8)[0]
    cost = stage.cost(2, 1, False, "no")
    monkeypatch.setattr("vqvae2.planning.speed.TIMED_SECONDS", 0.2)
    monkeypatch.setattr(PartialState, "__init__", chosen)
    speed = cpu_speed(stage, cost, 2, "no")
    assert speed.measured and 0 < speed.rate < speed.peak


def test_a_folder_of_images_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JPEG files of two sizes stand for the images, of which the number is given; nothing is written."""
    root, config = tmp_path / "nowhere", write_config(tmp_path, tmp_path / "run")
    flags = ["--images.source", "folder", "--images.root", str(root), "--num_images", "1000"]
    out = planned(monkeypatch, "--config", str(config), *flags, "--device", "a100")
    small, large = ([float(x.replace(",", "")) for x in rows(out)[f"cores to load, {name}"]] for name in FILES)
    assert len(small) == len(large) == 2 and all(0 < x < y for x, y in zip(small, large, strict=True))
    assert "1,000 images, 1,000 classes" in out and "1,000 classes unless --num_classes says otherwise" in out
    assert not root.exists() and not (tmp_path / "run").exists()


def test_a_torchvision_data_set_may_hold_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of pixels of the configured size take fewer cores than JPEG files; the data set need not exist."""
    config = write_config(tmp_path, tmp_path / "run")
    flags = ["--images.source", "torchvision:MNIST", "--images.root", str(tmp_path / "nowhere"), "--device", "a100"]
    table = rows(planned(monkeypatch, "--config", str(config), *flags, "--num_images", "1000"))
    array, jpeg = (float(table[f"cores to load, {name}"][0].replace(",", "")) for name in ("array", "3-megapixel JPEG"))
    assert 0 < array < jpeg and not (tmp_path / "nowhere").exists()


def test_the_largest_batch_of_stage_2_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where encoding does not fit, the largest batch that does is named, divisible by the processes."""
    path, memory_gib = write_config(tmp_path, tmp_path / "run"), 0.02
    monkeypatch.setitem(GPUS, "a100", GPUS["a100"]._replace(memory_gib=memory_gib))
    flags = ["--device", "a100", "--processes", "2", "--stage2.batch_size", "4096"]
    out = planned(monkeypatch, "--config", str(path), *flags)
    named = re.search(r"does not fit: stage 2: --stage2.batch_size (\d+) \(batch (\d+), ", out)
    assert named and rows(out)["fits in 0 GiB"][1] == "NO", out
    batch_size, batch = map(int, named.groups())
    assert batch_size == 2 * batch
    config, _ = parse_config(["--config", str(path)])
    model = without_memory(lambda: training_stages(config, 8)[0].build(False))
    fits, next_one = (encoding_cost(model, lambda n=n: random_images(config, n), "no").peak for n in (batch, batch + 1))
    assert fits <= USABLE * memory_gib * 2**30 < next_one
    assert "does not fit with one image at a time" in encoding_remedy(lambda n: 10 * n, 8, 9, 2)


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
