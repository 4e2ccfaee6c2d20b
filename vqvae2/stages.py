"""Stages 1 to 4, each a function of the configuration. They exchange data only through files in the run directory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from vqvae2.autoencoder.artefact import TrainedAutoencoder, build_autoencoder, describe_autoencoder, load_autoencoder
from vqvae2.autoencoder.likelihood import pixel_variance
from vqvae2.autoencoder.objective import AutoencoderObjective
from vqvae2.autoencoder.validation import usage_warnings, validate_autoencoder
from vqvae2.codes.extraction import extract_codes, open_codes
from vqvae2.codes.format import Header
from vqvae2.codes.loading import CodeBatch, load_code_batches
from vqvae2.config import Config, TrainConfig, as_dict, compression_ratio, local_batch_size
from vqvae2.errors import StoppedError, UserError
from vqvae2.generation.start import recorded_start, start_autoencoder, start_prior
from vqvae2.images.image_sets import Splits, with_cropped_copies, with_flipped_copies
from vqvae2.images.loading import Augmentation, ImageBatch, load_batches
from vqvae2.images.survey import open_surveyed
from vqvae2.prior.artefact import build_prior, describe_prior, prior_dir
from vqvae2.prior.likelihood import nats_per_code
from vqvae2.prior.objective import PriorObjective
from vqvae2.prior.prior import Prior
from vqvae2.report.page import write_report
from vqvae2.run.directory import codes_path, recorded_configuration, stage_dir
from vqvae2.run.launch import (
    join_processes,
    refusals_reach_all,
    start_accelerator,
    start_training_accelerator,
)
from vqvae2.run.lock import locked_by_main
from vqvae2.training.begin import begin_training, recorded
from vqvae2.training.loop import train
from vqvae2.training.order import StepOrder
from vqvae2.training.window import validation_window


def train_autoencoder(config: Config) -> None:
    """Stage 1: train the autoencoder on images -> stage1/model.safetensors."""
    images, stage1 = config.images, config.stage1
    directory = stage_dir(config.run_dir, 1)
    accelerator = start_training_accelerator("stage1", stage1, config, directory)
    local_batch = _local_batch("stage1", stage1, accelerator)
    sections = {key: as_dict(config)[key] for key in ("images", "autoencoder", "stage1", "seed")}
    started = recorded_start(directory)
    if not begin_training(directory, sections | started, stage1, accelerator):
        return

    autoencoder = build_autoencoder(config.autoencoder, images.channels, config.seed)
    with refusals_reach_all(accelerator):
        started |= start_autoencoder(autoencoder, images.channels, stage1, directory, accelerator.print)
    splits = open_surveyed(config, accelerator)
    autoencoder.to(accelerator.device)
    accelerator.print(
        f"{len(splits.train)} training images, {len(splits.validation)} held out; "
        f"{count_weights(autoencoder):,} parameters; "
        f"codes are {compression_ratio(config.autoencoder, images.height_width):.1f} times smaller than 24-bit pixels"
    )

    def batches(first_step: int) -> Iterator[ImageBatch]:
        order = _order(len(splits.train), stage1, config.seed, first_step, accelerator)
        augmentation = Augmentation(config.seed, images.horizontal_flip, images.crop_area)
        return load_batches(splits.train, order, images.workers, augmentation)

    def validate(step: int) -> dict[str, float]:
        grid = directory / "images" / f"step_{step:08d}.png"
        metrics = validate_autoencoder(autoencoder, splits.validation, local_batch, images.workers, accelerator, grid)
        if step > objective.start_step and accelerator.is_main_process:
            for line in usage_warnings(metrics, config.autoencoder, images.height_width, len(splits.validation)):
                tqdm.write(line)
        return metrics

    trained = stage1.start_from is not None
    objective = AutoencoderObjective(autoencoder, stage1.batch_size, stage1.total_steps, config.seed, trained)

    def describe() -> dict[str, Any]:
        variance = pixel_variance(autoencoder, splits.train, local_batch, images.workers, accelerator)
        train_set = splits.train
        own = describe_autoencoder(config.autoencoder, images, train_set.classes, train_set.labels, variance)
        return own | started

    with recorded(directory, sections | started, config, accelerator):
        loop = (objective, batches, validate, stage1, directory, config.seed, accelerator, describe)
        train(*loop, after_validation=lambda: write_report(Path(config.run_dir)))
    accelerator.end_training()
    pictures = directory / "images"  # none without a training step
    shown = f"; reconstructions: {pictures}" if pictures.exists() else ""
    accelerator.print(f"autoencoder: {directory / 'model.safetensors'}{shown}")


def write_codes(config: Config) -> None:
    """Stage 2: encode the images with the autoencoder -> codes/train.lmdb and codes/validation.lmdb."""
    trained = _load_autoencoder(config)
    accelerator = start_accelerator("stage2", config.stage2.mixed_precision)
    local_batch_size("stage2.batch_size", config.stage2.batch_size, accelerator.num_processes)
    splits = open_surveyed(config, accelerator)
    _check_images(config, trained, splits)
    if area := config.images.crop_area:
        copies = config.stage2.cropped_copies
        splits = splits._replace(train=with_cropped_copies(splits.train, copies, area, config.seed))
    if config.stage2.flipped_copies:
        splits = splits._replace(train=with_flipped_copies(splits.train))
    autoencoder = trained.module.to(accelerator.device)
    directory = codes_path(config.run_dir, "train").parent
    with locked_by_main(directory, accelerator):
        for name, images in splits._asdict().items():
            path = codes_path(config.run_dir, name)
            header = Header(trained.grids, trained.classes, len(images), accelerator.mixed_precision, trained.sha256)
            written = extract_codes(
                autoencoder, images, path, header, config.stage2.batch_size, config.images.workers, accelerator
            )
            new = f"{written} of them newly encoded" if written else "already finished"
            accelerator.print(f"{path}: {len(images)} images, {new}")


def _check_images(config: Config, trained: TrainedAutoencoder, splits: Splits) -> None:
    """Raise a UserError if the size, channels or classes of the images differ from those of stage 1."""
    images = config.images
    for key, here, there in (
        ("images.size", images.height_width, trained.height_width),
        ("images.channels", images.channels, trained.channels),
        ("classes", splits.train.classes, trained.classes),
    ):
        if here != there:
            raise UserError(
                f"{key}: {here!r}, but {trained.path} was trained with {there!r}: use that value or another run_dir"
            )


def train_priors(config: Config, levels: list[str]) -> None:
    """Stage 4: train the priors of some levels, one after the other."""
    for level in levels:
        reason = train_prior(config, level)
        if reason and level != levels[-1]:
            raise StoppedError(f"{config.run_dir}: stopped by {reason} after the prior of {level}")


def train_prior(config: Config, level: str) -> str | None:
    """Stages 3 and 4: train the prior of one level on codes -> model.safetensors in stage3/ or stage4/LEVEL/.

    Returns:
        As for `train`.
    """
    trained = _load_autoencoder(config)
    names = [grid.name for grid in trained.grids]
    if level not in names:
        raise UserError(f"level: {level!r} is not a level of {trained.path}: use one of {', '.join(names)}")
    prior_config = config.priors[level]
    settings = prior_config.train
    directory = prior_dir(config.run_dir, names, level)
    key = f"priors.{level}.train"
    accelerator = start_training_accelerator(key, settings, config, directory)
    local_batch = _local_batch(key, settings, accelerator)
    with refusals_reach_all(accelerator):
        train_codes, validation_codes = (
            open_codes(codes_path(config.run_dir, split), trained.sha256, trained.path)
            for split in ("train", "validation")
        )
    if recorded_configuration(directory).get("autoencoder_sha256", trained.sha256) != trained.sha256:
        raise UserError(
            f"{directory} was trained on the codes of another autoencoder than {trained.path}: "
            f"delete {directory} to train it again, or use another run_dir"
        )
    sections = {
        "priors": {level: as_dict(prior_config)},
        "seed": config.seed,
        "autoencoder_sha256": trained.sha256,
    }
    started = recorded_start(directory)
    if not begin_training(directory, sections | started, settings, accelerator):
        return None

    prior = build_prior(
        prior_config, trained.grids, level, len(trained.classes), config.seed, trained.module.codebooks()
    )
    with refusals_reach_all(accelerator):
        started |= start_prior(prior, trained.sha256, settings, directory, accelerator.print)
    prior.to(accelerator.device)
    accelerator.print(
        f"codes of {len(train_codes)} training images, {len(validation_codes)} held out; "
        f"{count_weights(prior):,} parameters; "
        f"{describe_reach(prior)}"
    )

    def batches(first_step: int) -> Iterator[CodeBatch]:
        return load_code_batches(train_codes, _order(len(train_codes), settings, config.seed, first_step, accelerator))

    def validate(step: int) -> dict[str, float]:
        return {"nats_per_code": nats_per_code(prior, validation_codes, window, local_batch, accelerator)}

    window = validation_window(len(validation_codes))

    def describe() -> dict[str, Any]:
        return describe_prior(prior, trained) | started

    objective = PriorObjective(prior, settings.batch_size, config.seed)
    with recorded(directory, sections | started, config, accelerator):
        loop = (objective, batches, validate, settings, directory, config.seed, accelerator, describe)
        reason = train(*loop, after_validation=lambda: write_report(Path(config.run_dir)))
    accelerator.end_training()
    accelerator.print(f"prior of {level}: {directory / 'model.safetensors'}")
    return reason


def _load_autoencoder(config: Config) -> TrainedAutoencoder:
    """Load the autoencoder of stage 1; if one process cannot, for example on a node without the files, none goes on."""
    with refusals_reach_all(join_processes()):
        return load_autoencoder(config.run_dir)


def _local_batch(key: str, settings: TrainConfig, accelerator: Accelerator) -> int:
    """Batch size of one process in one forward pass; `key` is the name of the section `settings`, for messages."""
    accumulation = settings.gradient_accumulation_steps
    return local_batch_size(f"{key}.batch_size", settings.batch_size, accelerator.num_processes, accumulation)


def _order(num_images: int, settings: TrainConfig, seed: int, first_step: int, accelerator: Accelerator) -> StepOrder:
    """Order in which this process trains on images, from `first_step` on."""
    return StepOrder(
        num_images,
        settings.batch_size,
        seed,
        first_step,
        settings.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
    )


def describe_reach(prior: Prior) -> str:
    """Describe the receptive field of a prior, with a warning if it is smaller than the grid."""
    reach = prior.reach()
    right = "" if reach.right is None else f", {reach.right} columns to the right in the row above"
    if reach.rows is None or reach.left is None:
        return f"receptive field: all earlier codes{right}"
    text = f"receptive field: {reach.rows} rows up, {reach.left} columns to the left{right}"
    if reach.rows < prior.grid.height - 1 or reach.left < prior.grid.width - 1:
        text += (
            f"; warning: the grid has {prior.grid.height} rows and {prior.grid.width} columns: "
            "use more layers, a larger kernel_size or attention_layers to cover it"
        )
    return text


def count_weights(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())
