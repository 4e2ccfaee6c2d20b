"""Resuming a run: comparison with the recorded configuration, values taken from it, and permitted changes."""

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from tests.conftest import refusal, succeed
from vqvae2 import Generator
from vqvae2.config import AutoencoderConfig, ImagesConfig, LevelConfig, PriorConfig, TrainConfig, completed
from vqvae2.config.absent import ABSENT
from vqvae2.run.command_line import parse_config

# Fields of the oldest supported records; fields that were added later have a value in ABSENT.
FIRST_FIELDS = {
    "images": (
        ImagesConfig,
        "source root validation_root validation_fraction size channels horizontal_flip workers max_images",
    ),
    "autoencoder": (
        AutoencoderConfig,
        "levels hidden_channels residual_channels residual_layers reconstruction_loss commitment_weight "
        "codebook_update ema_decay revival_window_images continuous_steps",
    ),
    "autoencoder.levels": (LevelConfig, "name stride codebook_size code_dim"),
    "priors.*": (
        PriorConfig,
        "hidden_channels residual_channels layers kernel_size attention_layers attention_heads dropout output_layers "
        "conditioning_layers label_dropout train",
    ),
    "stage1": (
        TrainConfig,
        "batch_size total_steps learning_rate warmup_steps schedule gradient_clip gradient_accumulation_steps "
        "mixed_precision weight_average_decay compile save_every validate_every log_every",
    ),
}


@pytest.fixture
def run(tiny_run: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the tiny run's directory."""
    shutil.copytree(tiny_run[1], tmp_path / "run")
    return tmp_path / "run"


def edit_record(path: Path, section: str, **changes: object) -> None:
    """Change fields in a section of a config.yaml or model.json; None removes the field."""
    content = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        content[section].pop(name) if value is None else content[section].update({name: value})
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))


@pytest.mark.parametrize("section", FIRST_FIELDS)
def test_every_later_field_says_what_its_absence_means(section: str) -> None:
    """Every field that was added after the oldest supported records has a value in ABSENT."""
    kind, first = FIRST_FIELDS[section]
    later = {x.name for x in fields(kind)} - set(first.split())
    assert later == {key.removeprefix(f"{section}.") for key in ABSENT if key.rpartition(".")[0] == section}


def test_absent_fields_are_added_and_present_ones_stay() -> None:
    """Missing fields are added for every level, only in sections that the record contains; others are unchanged."""
    record = {
        "autoencoder": {"level_dropout": 0.3},
        "priors": {"top": {}, "bottom": {"activation_checkpointing": True}},
    }
    assert completed(record) == {
        "autoencoder": {"level_dropout": 0.3, "activation": "relu"},
        "priors": {
            "top": {"activation_checkpointing": False, "right_reach": None},
            "bottom": {"activation_checkpointing": True, "right_reach": None},
        },
    }
    assert record["priors"]["top"] == {}


def test_a_run_from_before_a_field_goes_on(tiny_run: tuple[Path, Path], run: Path) -> None:
    """A run whose records lack a field can be continued with the value that its absence means.

    Another value is refused with a message that contains both.
    """
    edit_record(run / "stage1" / "config.yaml", "autoencoder", level_dropout=None)
    edit_record(run / "stage1" / "model.json", "model", level_dropout=None)
    flags = ("--config", str(tiny_run[0]), "--run_dir", str(run), "--stage1.total_steps", "6")
    message = refusal("stage1", *flags, "--autoencoder.level_dropout", "0.1")
    assert "autoencoder.level_dropout was 0.0 and is now 0.1" in message
    assert "continuing to step 6" in succeed("stage1", *flags)
    assert Generator.from_run(run).autoencoder.config.level_dropout == 0.0


def test_what_is_not_given_comes_from_the_record(tiny_run: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    """Fields that are not set explicitly are taken from the record of a run; a new run uses the defaults."""
    edit_record(run / "stage1" / "config.yaml", "autoencoder", ema_decay=0.9)
    edit_record(run / "stage3" / "config.yaml", "priors", top={"label_dropout": 0.4})
    flags = ["--config", str(tiny_run[0]), "--autoencoder.residual_layers", "3"]
    config, _ = parse_config([*flags, "--run_dir", str(run)])
    assert (config.autoencoder.ema_decay, config.priors["top"].label_dropout) == (0.9, 0.4)
    assert config.autoencoder.residual_layers == 3 and config.autoencoder.levels[1].codebook_size == 300
    config, _ = parse_config([*flags, "--run_dir", str(tmp_path / "new")])
    assert (config.autoencoder.ema_decay, config.priors["top"].label_dropout) == (0.99, 0.1)


def test_fewer_steps_than_the_checkpoint_are_refused(tiny_run: tuple[Path, Path], run: Path) -> None:
    """A total_steps below the step of the checkpoint is refused with both numbers, and nothing is exported."""
    for name in ("model.json", "model.safetensors"):
        (run / "stage1" / name).unlink()
    flags = ("--config", str(tiny_run[0]), "--run_dir", str(run), "--stage1.total_steps")
    message = refusal("stage1", *flags, "3")
    assert "total_steps is 3" in message and "of step 4" in message
    assert not (run / "stage1" / "model.json").exists()
    succeed("stage1", *flags, "4")


def test_a_finished_stage_without_checkpoints_does_not_start_over(tiny_run: tuple[Path, Path], run: Path) -> None:
    """With more steps, a stage whose checkpoints were deleted is refused, and its log and model stay."""
    shutil.rmtree(run / "stage1" / "checkpoints")
    before = {name: (run / "stage1" / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors")}
    flags = ("--config", str(tiny_run[0]), "--run_dir", str(run), "--stage1.total_steps")
    assert "finished at step 4, but its checkpoints are missing" in refusal("stage1", *flags, "6")
    assert {name: (run / "stage1" / name).read_bytes() for name in before} == before
    assert "nothing to do" in succeed("stage1", *flags, "4")


def test_a_run_that_met_a_nan_goes_on_with_another_rate(tiny_run: tuple[Path, Path], run: Path) -> None:
    """A learning rate that leads to non-finite values stops the run.

    With a lower learning rate, as the message suggests, the run resumes from its checkpoint.
    """
    flags = ("--config", str(tiny_run[0]), "--run_dir", str(run), "--stage1.total_steps", "12")
    message = refusal("stage1", *flags, "--stage1.learning_rate", "1e30")
    assert "not finite" in message and "run the same command again with a lower learning_rate" in message
    said = succeed("stage1", *flags, "--stage1.learning_rate", "0.0001", "--stage1.gradient_clip", "0.5")
    assert "going on from step" in said and "stage1.learning_rate changes from" in said
    assert json.loads((run / "stage1" / "model.json").read_text())["step"] == 12


def test_the_same_pixels_are_measured_in_training_and_in_evaluation(tiny_run: tuple[Path, Path]) -> None:
    """The PSNR in metrics.jsonl is that of reconstructions rounded to 8 bits, as in the evaluation."""
    import torch

    from vqvae2.images.distances import psnr
    from vqvae2.images.sources import open_images

    generator = Generator.from_run(tiny_run[1], dtype="float32")
    images = open_images(ImagesConfig(size=[16, 32], max_images=48), seed=0).validation
    originals = torch.stack([images.load(i) for i in range(len(images))])
    expected = psnr(originals, generator.decode(generator.encode(originals))).mean().item()
    lines = [json.loads(line) for line in (tiny_run[1] / "stage1" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["psnr"] == pytest.approx(expected, rel=1e-5)


def test_others_may_read_what_the_umask_allows(tiny_run: tuple[Path, Path]) -> None:
    """Every file of a run has the permissions of any new file, weights, checkpoints and codes as well."""
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in tiny_run[1].rglob("*") if path.is_file() and path.name != "lock"]
    assert any(path.suffix == ".safetensors" for path in files)
    private = {path.name for path in files if path.stat().st_mode & 0o777 != 0o666 & ~umask}
    assert not private
