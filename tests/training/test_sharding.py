"""Optimizer state, averages and best weights shared among processes: the same training, in parts."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import nn

from tests.training.test_checkpoints import flip_a_byte
from tests.training.test_loop import SETTINGS, InterruptionError, interrupt, log_of, prior_objective, train
from vqvae2.config import TrainConfig
from vqvae2.training import checkpoints
from vqvae2.training.average import WeightAverage
from vqvae2.training.best import best_of_state
from vqvae2.training.checkpoints import load_checkpoint
from vqvae2.training.objective import optimiser_of
from vqvae2.training.optimiser import build_optimiser, load_optimiser_state, optimiser_state, set_rate
from vqvae2.training.sharding import Shard, owners_of

STEPS, BEST, HALFWAY = 20, 9, 12
SHARDED = ("optimiser", "average", "best")


def train_prior(directory: Path, sharded: bool, stop_at: int | None = None) -> None:
    """Train a tiny prior with Muon, Adam and averages; the validation of step BEST is the best. May be interrupted."""
    settings = {**SETTINGS, "total_steps": STEPS, "save_every": 4, "log_every": 1, "learning_rate": 0.02}
    config = TrainConfig(**settings, shard_optimizer=sharded)
    objective = prior_objective(config, dropout=0.0)
    if stop_at is not None:
        interrupt(objective, stop_at)
    try:
        train(directory, objective, config, validate=lambda step: {"nats_per_code": abs(step - BEST)})
    except InterruptionError:
        assert stop_at is not None


def scenario(folder: Path) -> None:
    """Called in each of two processes."""
    for name, sharded in (("unsharded", False), ("sharded", True)):
        train_prior(folder / name, sharded)
        half = folder / f"{name}_then_one"
        train_prior(half, sharded, HALFWAY + 1)
        for then in ("unsharded", "sharded"):
            if PartialState().is_main_process:
                shutil.copytree(half, folder / f"{name}_then_{then}")
            PartialState().wait_for_everyone()
            train_prior(folder / f"{name}_then_{then}", then == "sharded")
    for processes in ("one", "four"):
        train_prior(folder / f"{processes}_then_sharded", True)
    read_damaged(folder, PartialState())


def read_damaged(folder: Path, state: PartialState) -> None:
    """Each process writes which checkpoint it loads, and its warnings, where a file of process 1 is damaged."""
    if state.is_main_process:
        shutil.copytree(folder / "sharded" / "checkpoints", folder / "damaged")
        flip_a_byte(folder / "damaged" / f"step_{STEPS:08d}" / "average-process1.safetensors")
    state.wait_for_everyone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_checkpoint(folder / "damaged", state)
    said = [str(x.message) for x in caught if "is damaged" in str(x.message)]
    (folder / f"damaged{state.process_index}.json").write_text(json.dumps([found.step, said]))


def before(folder: Path) -> None:
    train_prior(folder / "one", False)
    train_prior(folder / "one_then_sharded", False, HALFWAY + 1)
    shutil.copytree(folder / "one_then_sharded", folder / "four_then_sharded")
    divide_newest_checkpoint(folder / "four_then_sharded" / "checkpoints", 4)


def divide_newest_checkpoint(directory: Path, processes: int) -> None:
    """Replace a checkpoint by the files of several processes, each written from what that process loads and keeps."""
    whole = load_checkpoint(directory)
    step, groups = whole.step, whole.groups
    beside, written = directory / "beside", {}
    beside.mkdir()
    for process in range(processes):
        objective = prior_objective(TrainConfig(), dropout=0.0)
        shard = Shard(owners_of(objective.module, processes), process, processes)
        optimiser = optimiser_of(objective, SETTINGS["optimizer"], shard)
        load_optimiser_state(optimiser, objective.module, groups["optimiser"])
        average = WeightAverage(objective.module, SETTINGS["weight_average_decay"], shard)
        average.load(groups["average"])
        mine = {
            "optimiser": optimiser_state(optimiser, objective.module),
            "average": average.averages,
            "best": best_of_state(groups["best"], shard).state(),
        }
        replicated = {} if process else {name: groups[name] for name in groups.keys() - mine.keys()}
        written |= checkpoints._write(beside, replicated | mine, f"-process{process}" if process else "")
    checkpoints._publish(beside, directory / f"step_{step:08d}", {"step": step, "sha256": written})
    assert len(written) == 3 + len(SHARDED) * processes


def after(folder: Path) -> None:
    for name in ("unsharded_then_one", "sharded_then_one"):
        train_prior(folder / name, True)


@pytest.fixture
def folder(together: Path) -> Path:
    """Runs of two processes, sharded or not; those whose name ends in `one` go on in the process of pytest."""
    return together / __name__


def losses(directory: Path) -> list[float]:
    found = [line["loss"] for line in log_of(directory) if line["split"] == "train"]
    assert len(found) == STEPS
    return found


@pytest.mark.parametrize(
    "name",
    [
        "sharded",
        "one",
        "unsharded_then_sharded",
        "sharded_then_unsharded",
        "unsharded_then_one",
        "sharded_then_one",
        "one_then_sharded",
        "four_then_sharded",
    ],
)
def test_losses_and_exported_weights_are_those_of_unsharded_training(folder: Path, name: str) -> None:
    """Losses of 20 steps, and the exported averages of step 9, also where the run goes on sharded or not, or alone."""
    assert losses(folder / name) == pytest.approx(losses(folder / "unsharded"), rel=1e-4)
    one, other = (load_file(folder / x / "model.safetensors") for x in ("unsharded", name))
    assert one.keys() == other.keys()
    key_value = "attention.1.key_value.bias"  # half of it changes no loss, and Adam enlarges the noise of its gradient
    assert all(torch.allclose(one[key], other[key], rtol=1e-3, atol=1e-5) for key in one.keys() - {key_value})
    assert json.loads((folder / name / "model.json").read_text())["exported_step"] == BEST
    initial = prior_objective(TrainConfig()).module.to_logits.weight
    assert (other["to_logits.weight"] - initial).abs().max() > 0.01


@pytest.mark.parametrize("name", ["unsharded", "sharded"])
def test_resumed_run_is_the_uninterrupted_one(folder: Path, name: str) -> None:
    """On the same number of processes and sharded as before, resuming is exact."""
    resumed = folder / f"{name}_then_{name}"
    assert log_of(resumed) == log_of(folder / name)
    assert (resumed / "model.safetensors").read_bytes() == (folder / name / "model.safetensors").read_bytes()


def test_each_process_writes_its_share(folder: Path) -> None:
    """The files of the two processes hold different parameters, about half of the bytes each, and all of them."""
    step = f"checkpoints/step_{STEPS:08d}"
    for group in SHARDED:
        whole = load_file(folder / "unsharded" / step / f"{group}.safetensors")
        files = [folder / "sharded" / step / f"{group}{x}.safetensors" for x in ("", "-process1")]
        parts = [load_file(file) for file in files]
        assert parts[0].keys() | parts[1].keys() == whole.keys()
        assert parts[0].keys() & parts[1].keys() <= {"betas", "step", "value"}
        sizes = [sum(x.nbytes for x in part.values()) for part in parts]
        assert max(sizes) < 0.6 * sum(sizes)
    files = sorted(path.name for path in (folder / "sharded" / step).iterdir())
    assert len(files) == 1 + 3 + 2 * len(SHARDED)
    assert json.loads((folder / "sharded" / step / "manifest.json").read_text())["sha256"].keys() == {*files} - {
        "manifest.json"
    }


def test_damaged_part_of_another_process_is_named(folder: Path) -> None:
    """All processes skip a checkpoint of which one file is damaged; the main process names it."""
    steps, said = zip(*(json.loads((folder / f"damaged{i}.json").read_text()) for i in range(2)), strict=True)
    assert steps == (STEPS - 4, STEPS - 4)
    assert len(said[0]) == 1 and "average-process1.safetensors" in said[0][0] and said[1] == []


def test_parameters_are_dealt_evenly_and_never_split() -> None:
    """The largest come first; with more processes than parameters, some own none, and their optimizer does nothing."""
    module = nn.Sequential(*(nn.Linear(n, n) for n in (40, 30, 20, 10)))
    module[3].bias.requires_grad_(False)
    owners = owners_of(module, 3)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    assert owners.keys() == sizes.keys() - {"3.bias"}
    assert [sum(sizes[name] for name, x in owners.items() if x == i) for i in range(3)] == [1600, 900, 590]
    few = nn.Linear(3, 2)
    shard = Shard(owners_of(few, 3), 2, 3)
    optimiser = build_optimiser(few, {}, matrices={few.weight: 1}, shard=shard)
    set_rate(optimiser, 1.0)
    few(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    assert optimiser_state(optimiser, few).keys() == {"betas"}
