"""The training loop in one process: gradient accumulation, resuming and non-finite updates."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from vqvae2.autoencoder.artefact import build_autoencoder
from vqvae2.autoencoder.objective import AutoencoderObjective
from vqvae2.codes.loading import CodeBatch
from vqvae2.config import AutoencoderConfig, LevelConfig, LevelGrid, PriorConfig, TrainConfig
from vqvae2.errors import UserError
from vqvae2.images.loading import ImageBatch
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.objective import PriorObjective
from vqvae2.training import loop
from vqvae2.training.average import WeightAverage
from vqvae2.training.checkpoints import load_checkpoint, newest_step, save_checkpoint
from vqvae2.training.objective import Objective
from vqvae2.training.optimiser import DEFAULT_BETAS

BATCH = 8
SETTINGS = {
    "batch_size": BATCH,
    "total_steps": 6,
    "optimizer": "muon",
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "mixed_precision": "no",
    "save_every": 2,
    "validate_every": 3,
    "log_every": 3,
    "weight_average_decay": 0.9,
}


class InterruptionError(Exception):
    """Simulates the interruption of the process."""


def autoencoder_objective(
    train: TrainConfig, dtype: torch.dtype = torch.float32, update: str = "ema"
) -> AutoencoderObjective:
    """Objective of a tiny autoencoder with codebooks from the second step on, code revival and level dropout."""
    config = AutoencoderConfig(
        [LevelConfig("top", 8, codebook_size=6, code_dim=3), LevelConfig("bottom", 4, codebook_size=12, code_dim=2)],
        hidden_channels=8,
        residual_channels=4,
        residual_layers=1,
        revival_window_images=2 * BATCH,
        continuous_steps=1,
        level_dropout=0.25,
        codebook_update=update,
    )
    autoencoder = build_autoencoder(config, channels=3, seed=0).to(dtype)
    return AutoencoderObjective(autoencoder, BATCH, train.total_steps, seed=0)


def prior_objective(train: TrainConfig, dtype: torch.dtype = torch.float32, dropout: float = 0.3) -> PriorObjective:
    """Objective of a tiny prior with attention, dropout and label dropout."""
    config = PriorConfig(
        hidden_channels=8,
        residual_channels=8,
        layers=2,
        kernel_size=3,
        attention_layers=1,
        attention_heads=2,
        dropout=dropout,
        label_dropout=0.3,
    )
    shapes = [LevelGrid("top", 3, 4, 7)]
    return PriorObjective(build_prior(config, shapes, "top", 2, seed=0).to(dtype), BATCH, seed=0)


def batch_of(objective: Objective, step: int) -> ImageBatch | CodeBatch:
    """Return the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    labels, positions = torch.randint(2, (BATCH,), generator=generator), torch.arange(BATCH)
    if isinstance(objective, PriorObjective):
        return CodeBatch({"top": torch.randint(7, (BATCH, 3, 4), generator=generator)}, labels, positions)
    return ImageBatch(torch.rand(BATCH, 3, 16, 24, generator=generator) * 2 - 1, labels, positions, positions)


def part_of(batch: Any, part: slice) -> Any:
    fields = [{k: v[part] for k, v in x.items()} if isinstance(x, dict) else x[part] for x in batch]
    return type(batch)(*fields)


def train(
    directory: Path,
    objective: Objective,
    settings: TrainConfig,
    validate: Callable[[int], dict[str, float]] = lambda step: {"nats_per_code": -float(step)},
    pause: float = 0.0,
    after_validation: Callable[[], object] = lambda: None,
) -> str | None:
    """Run the loop on CPU processes, usually one; each batch is delayed by `pause` seconds."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    parts = settings.gradient_accumulation_steps
    directory.mkdir(exist_ok=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    share = BATCH // (parts * accelerator.num_processes)

    def batches(first_step: int) -> Iterator[Any]:
        for step in count(first_step):
            time.sleep(pause)
            for part in range(parts):
                first = (part * accelerator.num_processes + accelerator.process_index) * share
                yield part_of(batch_of(objective, step), slice(first, first + share))

    return loop.train(
        objective, batches, validate, settings, directory, 0, accelerator, lambda: {"kind": "test"}, after_validation
    )


def interrupt(objective: Objective, at: int) -> Objective:
    """Make the objective raise InterruptionError in the middle of step `at`."""
    end_step = objective.end_step

    def stopping(step: int, *arguments: Any) -> None:
        if step == at:
            raise InterruptionError
        end_step(step, *arguments)

    objective.end_step = stopping
    return objective


def spoil(
    objective: Objective, steps: tuple[int, ...], value: float, before: Callable[[], object] = lambda: None
) -> Objective:
    """Set a pixel of the last image of the global batch to `value` at the given steps, after calling `before`."""
    loss = objective.loss

    def spoilt(model: Any, batch: ImageBatch, step: int) -> Any:
        if step in steps and batch.batch_indices[0] == 0:
            before()
        if step in steps and batch.batch_indices[-1] == BATCH - 1:
            batch.images[-1, 0, 0, 0] = value
        return loss(model, batch, step)

    objective.loss = spoilt
    return objective


def everything(objective: Objective) -> dict[str, torch.Tensor]:
    """Return copies of the module's state and the objective's state."""
    return {name: x.clone() for name, x in {**objective.module.state_dict(), **objective.state()}.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Check that names and tensors are equal, bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def log_of(directory: Path) -> list[dict]:
    """Return the lines of the log without times."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key not in ("seconds", "images_per_second")} for line in lines]


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_accumulated_batch_is_the_batch(tmp_path: Path, update: str) -> None:
    """A batch in 4 parts gives the same weights, codebooks, averages and metrics as the whole batch."""
    results = []
    for parts in (1, 4):
        settings = TrainConfig(**SETTINGS, gradient_accumulation_steps=parts)
        objective = autoencoder_objective(settings, torch.float64, update)
        initial = everything(objective)
        train(tmp_path / str(parts), objective, settings)
        exported = load_file(tmp_path / str(parts) / "model.safetensors")
        results.append({**everything(objective), **{f"exported.{name}": x for name, x in exported.items()}})
    whole, split = results
    for name, x in whole.items():
        assert torch.allclose(x, split[name], rtol=1e-5, atol=1e-9), name
    assert all(not torch.equal(x, whole[name]) for name, x in initial.items() if name in objective.module.state_dict())
    for a, b in zip(log_of(tmp_path / "1"), log_of(tmp_path / "4"), strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("stopped_at", [1, 3, 5])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("build", [autoencoder_objective, prior_objective])
def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path, build: Callable, parts: int, stopped_at: int) -> None:
    """A run that is interrupted at any step and resumed has the same weights, averages, codebooks and log.

    They are equal bit for bit, with dropout.
    """
    settings = TrainConfig(**SETTINGS, gradient_accumulation_steps=parts)
    straight = build(settings)
    train(tmp_path / "straight", straight, settings)

    with pytest.raises(InterruptionError):
        train(tmp_path / "resumed", interrupt(build(settings), stopped_at), settings)
    resumed = build(settings)
    for parameter in resumed.module.parameters():
        # the values must come from the checkpoint, if there is one
        parameter.data.add_(1 if stopped_at >= 2 else 0)
    train(tmp_path / "resumed", resumed, settings)
    assert_equal(everything(straight), everything(resumed))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert_equal(one, other)
    assert log_of(tmp_path / "straight") == log_of(tmp_path / "resumed")


def test_a_run_goes_on_with_another_number_of_accumulation_steps(tmp_path: Path) -> None:
    """The batch stays the same, and so do the updates, but for dropout."""
    for name, first, then in (("whole", 1, 1), ("changed", 1, 2)):
        settings, changed = (TrainConfig(**SETTINGS, gradient_accumulation_steps=parts) for parts in (first, then))
        with pytest.raises(InterruptionError):
            train(tmp_path / name, interrupt(autoencoder_objective(settings, torch.float64), 3), settings)
        train(tmp_path / name, autoencoder_objective(changed, torch.float64), changed)
    whole, split = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "changed"))
    for name, x in whole.items():
        assert torch.allclose(x, split[name], rtol=1e-5, atol=1e-9), name


def test_a_request_after_the_last_step_is_passed_on(tmp_path: Path) -> None:
    """A signal during the last validation does not keep the stage from finishing, and the caller hears of it."""
    settings = TrainConfig(**SETTINGS)

    def validate(step: int) -> dict[str, float]:
        if step == settings.total_steps:
            os.kill(os.getpid(), signal.SIGUSR1)
        return {"nats_per_code": -float(step)}

    assert train(tmp_path / "stopped", prior_objective(settings), settings, validate) == "SIGUSR1"
    assert (tmp_path / "stopped" / "model.safetensors").exists()
    assert train(tmp_path / "other", prior_objective(settings), settings) is None


def test_old_checkpoint_goes_on_with_its_own_betas(tmp_path: Path) -> None:
    """A checkpoint without recorded betas resumes with PyTorch's defaults; new checkpoints record their betas."""
    settings = TrainConfig(**SETTINGS)
    straight, begun, resumed, newer = (prior_objective(settings) for _ in range(4))
    straight.betas = begun.betas = DEFAULT_BETAS
    train(tmp_path / "straight", straight, settings)
    with pytest.raises(InterruptionError):
        train(tmp_path / "resumed", interrupt(begun, 4), settings)
    checkpoint = load_checkpoint(tmp_path / "resumed" / "checkpoints")
    assert checkpoint.groups["optimiser"].pop("betas").tolist() == list(DEFAULT_BETAS)
    save_checkpoint(tmp_path / "resumed" / "checkpoints", checkpoint)
    train(tmp_path / "resumed", resumed, settings)
    assert_equal(everything(straight), everything(resumed))

    train(tmp_path / "newer", newer, settings)
    saved = load_checkpoint(tmp_path / "newer" / "checkpoints").groups["optimiser"]
    assert saved["betas"].tolist() == [0.9, 0.95]


def test_compiled_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `compile`, weights have the same names and values, also after resuming; the eager backend is used."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = TrainConfig(**SETTINGS), TrainConfig(**SETTINGS, compile=True)
    straight, resumed = prior_objective(plain), prior_objective(compiled)
    train(tmp_path / "plain", straight, plain)
    with pytest.raises(InterruptionError):
        train(tmp_path / "compiled", interrupt(prior_objective(compiled), 3), compiled)
    train(tmp_path / "compiled", resumed, compiled)
    one, other = everything(straight), everything(resumed)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """If the report cannot be written, a warning is printed and training continues.

    The checkpoint of that step is saved before the report is written.
    """
    settings = TrainConfig(**SETTINGS)
    saved = []

    def page() -> None:
        saved.append(newest_step(tmp_path / "checkpoints"))
        raise OSError("no space for a page")

    train(tmp_path, prior_objective(settings), settings, after_validation=page)
    assert saved == [2, 6] and (tmp_path / "model.json").exists()
    assert capsys.readouterr().out.count("warning: the report page could not be written: no space for a page") == 2


def test_finished_run_goes_on_to_more_steps(tmp_path: Path) -> None:
    """With a constant learning rate, 4 steps and then 2 more equal 6 steps."""
    settings = {**SETTINGS, "schedule": "constant", "validate_every": 100}
    longer = TrainConfig(**settings)
    straight, resumed = prior_objective(longer), prior_objective(longer)
    train(tmp_path / "straight", straight, longer)
    train(tmp_path / "resumed", prior_objective(longer), TrainConfig(**{**settings, "total_steps": 4}))
    train(tmp_path / "resumed", resumed, longer)
    assert_equal(everything(straight), everything(resumed))
    assert json.loads((tmp_path / "resumed" / "model.json").read_text())["step"] == 6


def test_exported_weights_are_the_validated_ones(tmp_path: Path) -> None:
    """Validation uses the averaged weights in eval mode, and these are exported; the trained weights are kept."""
    settings = TrainConfig(**SETTINGS)
    objective = prior_objective(settings)
    seen = []

    def validate(step: int) -> dict[str, float]:
        assert not objective.module.training
        seen.append({name: x.clone() for name, x in objective.module.state_dict().items()})
        return {"nats_per_code": 7.0 - step}

    train(tmp_path, objective, settings, validate=validate)
    exported = load_file(tmp_path / "model.safetensors")
    assert_equal(seen[-1], exported)
    assert not torch.equal(exported["to_logits.weight"], objective.module.state_dict()["to_logits.weight"])
    assert [x["nats_per_code"] for x in log_of(tmp_path) if x["split"] == "validation"] == [4, 1]


@pytest.mark.parametrize("parts", [1, 4])
def test_batch_that_is_not_finite_changes_nothing_and_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """A NaN in the last image of step 5 leaves weights, codebooks and averages as after step 4.

    The run stops with a message that names the step.
    """
    settings = TrainConfig(**{**SETTINGS, "log_every": 1}, gradient_accumulation_steps=parts)
    averages = []

    class Watched(WeightAverage):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            averages.append(self)

    monkeypatch.setattr(loop, "WeightAverage", Watched)
    objective = autoencoder_objective(settings)
    before = {}

    def present() -> dict[str, torch.Tensor]:
        return {**everything(objective), **{f"average.{name}": x.clone() for name, x in averages[0].averages.items()}}

    spoil(objective, (4,), torch.nan, before=lambda: before.update(present()))
    with pytest.raises(UserError, match="step 5"):
        train(tmp_path, objective, settings)
    assert_equal(before, present())
    assert load_checkpoint(tmp_path / "checkpoints").step == 4
    assert not (tmp_path / "model.safetensors").exists()


def test_first_bad_step_is_named_though_it_is_read_later(tmp_path: Path) -> None:
    """If steps 3 and 4 are non-finite and found at step 6, the message names step 3 and no checkpoint is saved."""
    settings = TrainConfig(**{**SETTINGS, "log_every": 6, "save_every": 100, "gradient_clip": None})
    objective = spoil(autoencoder_objective(settings), (2, 3), torch.inf)

    with pytest.raises(UserError, match="step 3"):
        train(tmp_path, objective, settings)
    assert all(x.isfinite().all() for x in everything(objective).values())
    assert load_checkpoint(tmp_path / "checkpoints") is None


def test_save_does_not_keep_a_bad_run(tmp_path: Path) -> None:
    """A non-finite step is found before the next checkpoint is saved, even if no log line is due."""
    settings = TrainConfig(**{**SETTINGS, "log_every": 100, "total_steps": 8})
    objective = spoil(autoencoder_objective(settings), (4,), torch.nan)

    with pytest.raises(UserError, match="step 5"):
        train(tmp_path, objective, settings)
    assert load_checkpoint(tmp_path / "checkpoints").step == 4


def test_bad_step_in_the_continuous_part_is_left_out(tmp_path: Path) -> None:
    """A non-finite step before quantization starts stops the run and changes nothing."""
    settings = TrainConfig(**{**SETTINGS, "log_every": 1})
    objective = spoil(autoencoder_objective(settings), (0,), torch.nan)
    initial = everything(objective)

    with pytest.raises(UserError, match="step 1"):
        train(tmp_path, objective, settings)
    assert_equal(initial, everything(objective))


def test_gradient_is_clipped_to_its_largest_norm(tmp_path: Path) -> None:
    """Clipping changes the weights, and the logged norm is the one before clipping."""
    norms, weights = [], []
    for clip in (1e-7, None):
        settings = TrainConfig(**{**SETTINGS, "total_steps": 1, "gradient_clip": clip, "log_every": 1})
        objective = prior_objective(settings)
        train(tmp_path / str(clip), objective, settings)
        norms.append(log_of(tmp_path / str(clip))[0]["gradient_norm"])
        weights.append(objective.module.to_logits.weight.detach().clone())
    assert norms[0] == pytest.approx(norms[1]) and norms[0] > 1e-3
    assert not torch.allclose(*weights, rtol=1e-5)


def test_waiting_for_data_is_warned_of_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A warning is printed once if loading is slower than training."""
    settings = TrainConfig(**{**SETTINGS, "log_every": 1})
    train(tmp_path, prior_objective(settings), settings, pause=0.3)
    assert capsys.readouterr().out.count("of the time was spent waiting for data: increase images.workers") == 1


def test_figures_are_means_over_the_logged_steps(tmp_path: Path) -> None:
    """With log_every 2, each line contains the means of the metrics of its two steps."""
    lines = {}
    for every in (1, 2):
        settings = TrainConfig(**{**SETTINGS, "log_every": every})
        train(tmp_path / str(every), prior_objective(settings), settings)
        lines[every] = [x for x in log_of(tmp_path / str(every)) if x["split"] == "train"]
    assert [x["step"] for x in lines[2]] == [2, 4, 6]
    for i, line in enumerate(lines[2]):
        pair = lines[1][2 * i : 2 * i + 2]
        for name in ("loss", "nats_per_code", "gradient_norm"):
            assert line[name] == pytest.approx((pair[0][name] + pair[1][name]) / 2, rel=1e-5)


def test_figures_are_means_over_the_steps_since_the_last_line(tmp_path: Path) -> None:
    """Metrics are means over the steps since the last line, also if the run ended and was continued in between."""
    settings = {**SETTINGS, "schedule": "constant", "validate_every": 100}
    every_step = TrainConfig(**{**settings, "log_every": 1})
    train(tmp_path / "single", prior_objective(every_step), every_step)
    losses = {line["step"]: line["loss"] for line in log_of(tmp_path / "single") if line["split"] == "train"}
    for total_steps in (4, 6):  # lines after steps 3 and 4, then after step 6
        longer = TrainConfig(**{**settings, "total_steps": total_steps})
        train(tmp_path / "resumed", prior_objective(longer), longer)
    last = [line for line in log_of(tmp_path / "resumed") if line["split"] == "train"][-1]
    assert last["step"] == 6
    assert last["loss"] == pytest.approx((losses[5] + losses[6]) / 2, rel=1e-5)


@pytest.mark.parametrize("stopped_at", [None, 3, 5])
def test_the_weights_of_the_best_validation_are_exported(tmp_path: Path, stopped_at: int | None) -> None:
    """The best held-out value decides, also across a resume; `step` is the last step, `exported_step` the best one."""
    settings = TrainConfig(**{**SETTINGS, "validate_every": 1})
    values = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 1.0, 6: 4.0}
    weights: dict[int, dict[str, torch.Tensor]] = {}
    objective = prior_objective(settings)

    def validate(step: int) -> dict[str, float]:
        weights[step] = {name: x.clone() for name, x in objective.module.state_dict().items()}
        return {"nats_per_code": values[step]}

    if stopped_at:
        with pytest.raises(InterruptionError):
            train(tmp_path, interrupt(objective, stopped_at), settings, validate)
        objective = prior_objective(settings)
    train(tmp_path, objective, settings, validate)
    described = json.loads((tmp_path / "model.json").read_text())
    assert (described["step"], described["exported_step"]) == (6, 2)
    exported = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(exported[name], x) for name, x in weights[2].items())
    longer = TrainConfig(**{**SETTINGS, "validate_every": 1, "total_steps": 7})
    values[7] = 0.5
    objective = prior_objective(longer)
    train(tmp_path, objective, longer, validate)
    assert json.loads((tmp_path / "model.json").read_text())["exported_step"] == 7
    assert all(torch.equal(load_file(tmp_path / "model.safetensors")[name], x) for name, x in weights[7].items())


def test_overfitting_is_named_with_both_losses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The message appears when the held-out loss is above its best and the training loss below it, and not before."""
    settings = TrainConfig(**{**SETTINGS, "validate_every": 2, "log_every": 1})
    train(
        tmp_path, prior_objective(settings), settings, lambda step: {"nats_per_code": {2: 2.5, 4: 2.25, 6: 9.0}[step]}
    )
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if line.startswith("overfitting:")]
    assert len(lines) == 1 and "9 on held-out" in lines[0] and "2.25 at step 4" in lines[0]
