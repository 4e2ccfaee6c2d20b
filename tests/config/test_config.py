"""Tests of the configuration: configuration files, defaults and rejected values."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, write_config
from vqvae2.config import (
    AutoencoderConfig,
    Config,
    ImagesConfig,
    LevelConfig,
    PriorConfig,
    Stage2Config,
    TrainConfig,
    check,
    compression_ratio,
    level_grids,
    local_batch_size,
)
from vqvae2.errors import UserError
from vqvae2.run.command_line import parse_config

CONFIGS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if not path.name.startswith("family_")]
TOP, BOTTOM = LevelConfig("top", 8), LevelConfig("bottom", 4)
GOOD = Config(
    run_dir="run",
    images=ImagesConfig(size=64),
    autoencoder=AutoencoderConfig([TOP, BOTTOM]),
    stage1=TrainConfig(),
    stage2=Stage2Config(),
    priors={"top": PriorConfig(attention_layers=4), "bottom": PriorConfig(conditioning_layers=2)},
)


def changed(config: Any, key: str, value: Any) -> Any:
    """A copy of nested dataclasses, dictionaries and lists with one value replaced."""
    first, _, rest = key.partition(".")
    if isinstance(config, list):
        return [changed(x, rest, value) if rest and i == int(first) else x for i, x in enumerate(config)]
    old = config[first] if isinstance(config, dict) else getattr(config, first)
    new = changed(old, rest, value) if rest else value
    return {**config, first: new} if isinstance(config, dict) else replace(config, **{first: new})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_good(path: Path):
    """Each file in configs/ can be read and passes all checks."""
    config, _ = parse_config(["--config", str(path)])
    shapes = level_grids(config.autoencoder.levels, config.images.height_width)
    assert [x.name for x in shapes] == [x.name for x in config.autoencoder.levels]
    assert compression_ratio(config.autoencoder, config.images.height_width) > 1


@pytest.mark.parametrize(("name", "ratio"), [("imagenet256", 34.13), ("vqvae", 42.67), ("ffhq1024", 130.03)])
def test_compression_of_the_papers_configurations(name: str, ratio: float):
    """The compression ratio of the papers' configurations is that of 24 bits per pixel to 9 bits per code."""
    config, _ = parse_config(["--config", str(ROOT / "configs" / f"{name}.yaml")])
    assert compression_ratio(config.autoencoder, config.images.height_width) == pytest.approx(ratio, abs=0.01)


def test_a_good_configuration_passes():
    """The configuration that the following tests modify is valid."""
    check(GOOD)


def test_defaults_fill_what_a_file_leaves_out(tmp_path: Path):
    """Fields missing from a file have the documented defaults, including weight averaging of priors."""
    config, _ = parse_config(["--config", str(write_config(tmp_path, tmp_path / "run"))])
    assert (config.seed, config.trackers, config.images.channels) == (0, [], 3)
    assert config.autoencoder.commitment_weight == 0.25 and config.autoencoder.codebook_update == "ema"
    assert config.stage1.gradient_clip == 1.0 and config.stage1.weight_average_decay is None
    assert PriorConfig().train.weight_average_decay == 0.9999


WRONG = [
    ("run_dir", "  "),
    ("seed", -1),
    ("images.size", 60),
    ("images.size", 0),
    ("images.size", -64),
    ("images.size", [64, 60]),
    ("images.size", [64]),
    ("images.size", [64, 64, 3]),
    ("images.channels", 4),
    ("images.size", 10**12),
    ("images.root", "pictures"),  # the source is `shapes`, which reads no files
    ("images.validation_root", "pictures"),
    ("images.validation_fraction", 0.1),
    ("images.workers", 10**6),
    ("run_dir", "a\0b"),
    ("stage1.batch_size", 10**12),
    ("images.workers", -1),
    ("images.max_images", 0),
    ("images.source", "folders"),
    ("images.source", "torchvision:"),
    ("images.source", "huggingface:"),
    ("images.source", "huggingface:a/b/c"),
    ("images.source", "huggingface:a/b:"),
    ("images.source", "huggingface:a/b:c:d"),
    ("images.image_column", "image"),
    ("images.label_column", "label"),
    ("images.validation_fraction", 0.0),
    ("images.validation_fraction", 1.0),
    ("images.validation_fraction", float("nan")),
    ("autoencoder.levels", []),
    ("autoencoder.hidden_channels", 0),
    ("autoencoder.residual_channels", 0),
    ("autoencoder.residual_layers", -1),
    ("autoencoder.commitment_weight", -0.25),
    ("autoencoder.ema_decay", 1.0),
    ("autoencoder.level_dropout", 1.0),
    ("autoencoder.level_dropout", -0.1),
    ("autoencoder.revival_window_images", -1),
    ("autoencoder.levels.0.stride", 6),
    ("autoencoder.levels.0.stride", 0),
    ("autoencoder.levels.0.stride", -8),
    ("autoencoder.levels.1.stride", 1),
    ("autoencoder.levels.1.stride", 8),
    ("autoencoder.levels.1.stride", 16),
    ("autoencoder.levels.0.codebook_size", 1),
    ("autoencoder.levels.0.code_dim", 0),
    ("autoencoder.levels.0.name", "the top"),
    ("stage1.batch_size", 0),
    ("stage1.total_steps", -5),
    ("stage1.learning_rate", 0.0),
    ("stage1.learning_rate", float("inf")),
    ("stage1.warmup_steps", -1),
    ("stage1.gradient_clip", 0.0),
    ("stage1.gradient_accumulation_steps", 0),
    ("stage1.weight_average_decay", 1.0),
    ("stage1.save_every", 0),
    ("stage1.validate_every", 0),
    ("stage1.log_every", 0),
    ("stage2.batch_size", 0),
    ("stage2.cropped_copies", -1),
    ("stage2.cropped_copies", 2),
    ("priors.top.kernel_size", 4),
    ("priors.top.kernel_size", 1),
    ("priors.top.layers", 0),
    ("priors.top.hidden_channels", 0),
    ("priors.top.attention_heads", 7),
    ("priors.top.attention_heads", 0),
    ("priors.top.attention_layers", 21),
    ("priors.top.attention_layers", -1),
    ("priors.top.conditioning_layers", 1),
    ("priors.bottom.conditioning_layers", -1),
    ("priors.top.dropout", 1.0),
    ("priors.top.label_dropout", -0.1),
    ("priors.bottom.output_layers", -1),
    ("priors.bottom.train.batch_size", 0),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_named(key: str, value: Any):
    """The message contains the key, with the index of a level in brackets, and the value."""
    spelt = re.sub(r"\.(\d+)", r"[\1]", key)
    with pytest.raises(UserError, match=f"(?m)^{re.escape(f'{spelt}: {value!r}')} "):
        check(changed(GOOD, key, value))


def test_the_nearest_good_size_is_named():
    """The message for an invalid size names the stride and a valid size."""
    with pytest.raises(UserError, match="stride 8, such as 104"):
        check(changed(GOOD, "images.size", 103))


def test_every_wrong_value_is_listed():
    """Three invalid values give three lines."""
    bad = changed(changed(changed(GOOD, "seed", -1), "images.channels", 2), "stage2.batch_size", 0)
    with pytest.raises(UserError) as refusal:
        check(bad)
    assert [line.split(":")[0] for line in str(refusal.value).splitlines()] == [
        "seed",
        "images.channels",
        "stage2.batch_size",
    ]


def test_a_sharded_optimizer_is_refused_with_fp16():
    """Sharding is valid with other precisions; the message names the remedy."""
    sharded = changed(GOOD, "stage1.shard_optimizer", True)
    check(sharded)
    with pytest.raises(UserError, match=r"stage1\.shard_optimizer: True .*mixed_precision bf16"):
        check(changed(sharded, "stage1.mixed_precision", "fp16"))


def test_weight_decay_needs_muon_and_shrinks_weights():
    """A decay is valid with muon, unless a step would turn the sign of the weights."""
    muon = changed(changed(GOOD, "stage1.optimizer", "muon"), "stage1.learning_rate", 0.02)
    check(changed(muon, "stage1.weight_decay", 0.1))
    with pytest.raises(UserError, match=r"stage1\.weight_decay: 0\.1 .*optimizer muon"):
        check(changed(GOOD, "stage1.weight_decay", 0.1))
    for value in (-0.1, 51.0):
        with pytest.raises(UserError, match=r"stage1\.weight_decay: .*1 / learning_rate"):
            check(changed(muon, "stage1.weight_decay", value))
    assert (muon.stage1.decay, GOOD.stage1.decay, changed(muon, "stage1.weight_decay", 0.0).stage1.decay) == (0.3, 0, 0)


def test_a_folder_needs_a_root():
    """The source `folder` is rejected without images.root and accepted with it."""
    folder = changed(GOOD, "images.source", "folder")
    with pytest.raises(UserError, match=r"images\.root: None"):
        check(folder)
    check(changed(folder, "images.root", "photos"))


def test_a_data_set_is_named_or_in_a_root():
    """The source `huggingface` needs images.root; with the name of a repository, images.root is rejected."""
    columns = {"size": 64, "image_column": "image", "label_column": "label"}
    with pytest.raises(UserError, match=r"images\.root: None"):
        check(replace(GOOD, images=ImagesConfig(source="huggingface", **columns)))
    with pytest.raises(UserError, match=r"images\.root: 'x'.*does not read it"):
        check(replace(GOOD, images=ImagesConfig(source="huggingface:a/b", root="x", **columns)))
    check(replace(GOOD, images=ImagesConfig(source="huggingface", root="x", **columns)))
    for name in ("some-one/cats_v1.0", "some-one/cats_v1.0:en-US", "cats:all photos"):
        check(replace(GOOD, images=ImagesConfig(source=f"huggingface:{name}", **columns)))


def test_torchvision_has_held_out_images_of_its_own():
    """images.validation_root is rejected with a torchvision source, which does not read it."""
    with pytest.raises(UserError, match=r"images\.validation_root: 'x'.*does not read it"):
        check(replace(GOOD, images=ImagesConfig(source="torchvision:MNIST", size=64, validation_root="x")))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("autoencoder.hidden_channels", "autoencoder"),
        ("autoencoder.levels.0.code_dim", "autoencoder"),
        ("priors.top.residual_channels", "priors.top"),
        ("priors.bottom.layers", "priors.bottom"),
    ],
)
def test_a_model_that_no_process_can_hold_is_refused(key: str, name: str):
    """A model with far too many parameters is rejected before any memory is allocated."""
    with pytest.raises(UserError, match=rf"(?m)^{name}: 'over [\d,]+ parameters'"):
        check(changed(GOOD, key, 10**12))


def test_two_levels_of_one_name_are_refused():
    """Duplicate level names are rejected, because the name identifies the level's prior and its folder."""
    with pytest.raises(UserError, match=r"autoencoder\.levels: \['top', 'top'\]"):
        check(replace(GOOD, autoencoder=AutoencoderConfig([TOP, LevelConfig("top", 4)])))


def test_level_dropout_needs_a_finer_level():
    """level_dropout above 0 is rejected with a single level, because there is no finer level to drop."""
    alone = replace(GOOD, priors={"top": PriorConfig()}, autoencoder=AutoencoderConfig([TOP], level_dropout=0.1))
    with pytest.raises(UserError, match=r"autoencoder\.level_dropout: 0\.1"):
        check(alone)
    check(changed(alone, "autoencoder.level_dropout", 0.0))


@pytest.mark.parametrize("names", [["top"], ["top", "bottom", "middle"], ["top", "botom"], []])
def test_priors_and_levels_have_the_same_names(names: list[str]):
    """If the names of levels and priors differ, the error lists both."""
    with pytest.raises(UserError, match=rf"priors: {re.escape(str(sorted(names)))}.*\['top', 'bottom'\]"):
        check(replace(GOOD, priors={name: PriorConfig() for name in names}))


def test_heads_matter_only_with_attention():
    """Without attention layers, the number of heads does not have to divide the number of channels."""
    check(changed(changed(GOOD, "priors.top.attention_layers", 0), "priors.top.attention_heads", 7))


@pytest.mark.parametrize(
    ("batch_size", "processes", "accumulation", "share"),
    [(96, 4, 3, 8), (5, 1, 1, 5), (2, 2, 1, 1)],
)
def test_a_batch_is_shared_out(batch_size: int, processes: int, accumulation: int, share: int):
    """A batch is split evenly over all processes and accumulation steps."""
    assert local_batch_size("stage1.batch_size", batch_size, processes, accumulation) == share


@pytest.mark.parametrize(
    ("batch_size", "processes", "accumulation"),
    [(96, 5, 1), (96, 4, 5), (2, 4, 1), (6, 2, 2)],
)
def test_a_batch_that_does_not_come_out_even_is_refused(batch_size: int, processes: int, accumulation: int):
    """The message contains the key, all three numbers and the number of which the batch size must be a multiple."""
    numbers = f"{batch_size} .* {processes} processes x {accumulation} .* {processes * accumulation}$"
    with pytest.raises(UserError, match=f"stage1.batch_size: {numbers}"):
        local_batch_size("stage1.batch_size", batch_size, processes, accumulation)


@pytest.mark.parametrize(
    ("levels", "height_width", "ratio"),
    [
        ([TOP, BOTTOM], (256, 256), 34.13),  # 24 * 65536 / (9 * (1024 + 4096))
        ([BOTTOM], (128, 128), 42.67),  # 24 * 16384 / (9 * 1024)
        ([LevelConfig("top", 2, codebook_size=2)], (2, 4), 96.0),  # 24 * 8 / 2 codes of one bit
    ],
)
def test_compression_ratio(levels: list[LevelConfig], height_width: tuple[int, int], ratio: float):
    """The compression ratio is that of 24 bits per pixel to log2 K bits per code."""
    assert compression_ratio(AutoencoderConfig(levels), height_width) == pytest.approx(ratio, abs=0.005)


def test_height_comes_before_width():
    """A size of [height, width] gives grids with the same orientation; a single number is both height and width."""
    assert ImagesConfig(size=[16, 64]).height_width == (16, 64) and ImagesConfig(size=32).height_width == (
        32,
        32,
    )
    assert level_grids([TOP, BOTTOM], (16, 64)) == [("top", 2, 8, 512), ("bottom", 4, 16, 512)]
