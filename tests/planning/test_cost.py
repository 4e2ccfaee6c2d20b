"""The plan's operations, memory and sizes, compared with closed forms and with real training steps and files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tests.conftest import write_config
from vqvae2.benchmarks.operations import OperationCounter
from vqvae2.codes.format import Codes, Header
from vqvae2.codes.writer import CodeWriter
from vqvae2.config import LevelGrid
from vqvae2.planning.sizes import record_bytes
from vqvae2.planning.stages import Stage, training_stages
from vqvae2.prior.attention import CausalAttention
from vqvae2.run.command_line import parse_config
from vqvae2.training.average import WeightAverage
from vqvae2.training.best import better
from vqvae2.training.objective import optimiser_of
from vqvae2.training.optimiser import optimiser_state, set_rate
from vqvae2.training.sharding import Shard, owners_of

BATCH, SIDE, CHANNELS = 2, 6, 8
SIZES = ["--images.size", "32", "--autoencoder.hidden_channels", "64", "--priors.top.hidden_channels", "64"]
SIZES += ["--priors.top.residual_channels", "64", "--priors.bottom.hidden_channels", "64"]


def operations(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Operations of forward and backward pass."""
    with OperationCounter() as counter:
        module(*inputs).sum().backward()
    return counter.total


def test_operations_of_layers_are_those_of_closed_forms() -> None:
    """Linear layers and convolutions take three products; attention two forward and, recomputing one, five backward."""
    x = torch.randn(BATCH * SIDE, CHANNELS, requires_grad=True)
    assert operations(nn.Linear(CHANNELS, 5), x) == 3 * 2 * BATCH * SIDE * CHANNELS * 5
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, requires_grad=True)
    assert operations(nn.Conv2d(CHANNELS, 5, 3, padding=1), x) == 3 * 2 * BATCH * SIDE**2 * CHANNELS * 5 * 9
    x = torch.randn(BATCH, SIDE, SIDE, CHANNELS, requires_grad=True)
    positions = SIDE**2
    linear = 3 * 2 * BATCH * positions * (CHANNELS**2 + 4 * CHANNELS**2 + CHANNELS**2)
    products = 7 * 2 * BATCH * positions**2 * CHANNELS
    assert operations(CausalAttention(CHANNELS, 2, 0.0), x, x.detach(), None) == linear + products


def stage_of(tmp_path: Path, index: int, *flags: str) -> Stage:
    config, _ = parse_config(["--config", str(write_config(tmp_path, tmp_path / "run")), *SIZES, *flags])
    return training_stages(config, 8)[index]


def measured_peak(stage: Stage, batch_size: int, checkpointing: bool, tmp_path: Path) -> int:
    """Bytes that PyTorch's allocator holds at most in a training step, as its profiler records them."""
    module = stage.build(checkpointing)
    objective = stage.objective(module)
    optimiser = optimiser_of(objective, stage.train.optimizer)
    set_rate(optimiser, 0.01)
    decay = stage.train.weight_average_decay
    average = WeightAverage(module, decay) if decay else None
    batch, number, applied = stage.batch(batch_size), objective.start_step or 0, torch.tensor(True)

    def step() -> None:
        objective.loss(module, batch, number).total.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        objective.end_step(number, applied, lambda tensor: tensor)
        if average:
            average.update(number, applied)

    step()
    best = better(None, 0, 0.0, module) if objective.validated_by else None
    kept = [*module.parameters(), *module.buffers(), *(x for s in optimiser.state.values() for x in s.values())]
    kept += [*objective.state().values(), *(average.averages.values() if average else [])]
    kept += [*(best.weights.values() if best else [])]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    now = peak = 0
    for event in events:
        if event.get("name") == "[memory]":
            now += event["args"]["Bytes"]
            peak = max(peak, now)
    return peak + sum(x.numel() * x.element_size() for x in kept)


@pytest.mark.parametrize(("index", "checkpointing"), [(0, False), (1, False), (2, False), (2, True)])
def test_peak_is_within_15_percent_of_that_of_a_training_step(tmp_path: Path, index: int, checkpointing: bool) -> None:
    """Autoencoder, a prior with attention and Muon, and a conditioned prior with and without checkpointing."""
    stage = stage_of(tmp_path, index, "--priors.bottom.layers", "6")
    measured = measured_peak(stage, 8, checkpointing, tmp_path)
    assert stage.cost(8, 1, checkpointing, "no").peak == pytest.approx(measured, rel=0.15)


def test_accumulation_holds_gradients_and_repeats_the_passes(tmp_path: Path) -> None:
    """With accumulation, gradients are held during the forward pass, and each pass counts; checkpointing adds one."""
    stage = stage_of(tmp_path, 2)
    once, twice = (stage.cost(8, n, False, "no") for n in (1, 2))
    assert once.peak < twice.peak <= once.peak + once.gradients
    assert twice.step - once.step == pytest.approx(3 * once.forward, rel=0.05)
    again = stage.cost(8, 1, True, "no")
    assert once.step < again.step <= once.step + once.forward and again.activations < once.activations


def test_several_processes_keep_the_buckets_of_gradients(tmp_path: Path) -> None:
    """DistributedDataParallel holds gradients during the forward pass, as accumulation does."""
    stage = stage_of(tmp_path, 2)
    alone, together, accumulated = (stage.cost(8, n, False, "no", p).peak for n, p in ((1, 1), (1, 2), (2, 1)))
    assert alone < together == accumulated


def test_adam_keeps_two_buffers_and_muon_one(tmp_path: Path) -> None:
    """Muon keeps one buffer less for each matrix, and no counter of steps."""
    stage = stage_of(tmp_path, 2)
    adam = stage.cost(2, 1, False, "no")
    muon = stage._replace(train=replace(stage.train, optimizer="muon")).cost(2, 1, False, "no")
    matrices = stage.build(False).matrices()
    assert adam.optimiser == pytest.approx(2 * adam.parameters, rel=0.01)
    assert adam.optimiser - muon.optimiser == 4 * sum(x.numel() + 1 for x in matrices)


def test_share_of_four_processes_is_that_of_the_largest(tmp_path: Path) -> None:
    """The planned share of a sharded optimizer is what the process with most of it keeps."""
    stage = stage_of(tmp_path, 1)
    cost = stage.cost(2, 1, False, "no", 4)
    module = stage.build(False)
    owners = owners_of(module, 4)
    shares = []
    for process in range(4):
        objective, shard = stage.objective(module), Shard(owners, process, 4)
        optimiser = optimiser_of(objective, stage.train.optimizer, shard)
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        set_rate(optimiser, 0.0)
        optimiser.step()
        average = WeightAverage(module, 0.9, shard)
        groups = [optimiser_state(optimiser, module), average.averages, better(None, 0, 0.0, module, shard).weights]
        shares.append([sum(x.nbytes for name, x in group.items() if name != "betas") for group in groups])
    largest = max(shares, key=sum)
    assert sum(cost.share) == pytest.approx(sum(largest), abs=64)
    assert sum(largest) < 0.5 * (cost.optimiser + cost.average + cost.best)
    saved = cost.optimiser + cost.average + cost.best - sum(cost.share)
    assert cost.sharded().peak == cost.peak - saved and stage.cost(2, 1, False, "no").share[0] > 0.99 * cost.optimiser


def test_checkpoint_has_the_planned_size(tiny_run: tuple[Path, Path]) -> None:
    """The tensors in the checkpoints of a real run take the planned number of bytes; headers of files are small."""
    config, _ = parse_config(["--config", str(tiny_run[0])])
    for stage, folder in zip(training_stages(config, 8), ("stage1", "stage3", "stage4/bottom"), strict=True):
        cost = stage.cost(8, 1, False, "no")
        newest = max((tiny_run[1] / folder / "checkpoints").iterdir())
        size = sum(x.stat().st_size for x in newest.glob("*.safetensors"))
        headers = sum(8 + int.from_bytes(x.read_bytes()[:8], "little") for x in newest.glob("*.safetensors"))
        assert size - headers == pytest.approx(cost.checkpoint, rel=0.02), stage.name


@pytest.mark.parametrize("side", [8, 24, 48])
def test_codes_take_the_planned_bytes(tmp_path: Path, side: int) -> None:
    """A store grows by the planned bytes an image, for records smaller and larger than a page."""
    grids = [LevelGrid("top", side, side, 512)]
    count = 2000
    writer = CodeWriter(tmp_path / "codes.lmdb", Header(grids, [], count, "no", ""))
    record = Codes({"top": torch.zeros(side, side, dtype=torch.long)}, 0, "n01440764/image_0000.jpg")
    for _ in range(0, count, 500):
        writer.write([record] * 500)
    writer.close()
    size = sum(file.stat().st_blocks * 512 for file in (tmp_path / "codes.lmdb").glob("data.mdb"))
    assert count * record_bytes(grids) == pytest.approx(size, rel=0.1)
