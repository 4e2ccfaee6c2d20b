"""Training of one model of the family with the loop of the stages."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.config import as_dict, local_batch_size
from vqvae2.family.config import FamilyConfig
from vqvae2.family.data import numbered_batches
from vqvae2.family.member import Member, Setting
from vqvae2.family.members import MEMBERS
from vqvae2.images.image_sets import Splits
from vqvae2.images.loading import Augmentation, ImageBatch, load_batches
from vqvae2.run.directory import compare_configuration
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.model_files import export_model, load_weights, read_description, read_weights
from vqvae2.run.precision import widest_float
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.begin import begin_training, recorded
from vqvae2.training.loop import finished_step, train
from vqvae2.training.metrics_log import MetricsLog
from vqvae2.training.objective import Loss, Reduce
from vqvae2.training.optimiser import BETAS
from vqvae2.training.order import StepOrder, in_order
from vqvae2.training.window import share_of, validation_window

VALIDATION_IMAGES = 256  # on which rate and distortion are computed during training


class MemberObjective:
    """The objective of a model of the family: what the training loop asks, passed on to the model."""

    betas = BETAS
    validated_by = None

    def __init__(self, member: Member):
        self.module = member
        self.rate_factors: dict[nn.Parameter, float] = member.rate_factors()
        self.matrices: Mapping[nn.Parameter, int] = member.matrices()

    @property
    def start_step(self) -> int | None:
        return self.module.start_step

    def start(self, batches: Iterator[list[Any]], reduce: Reduce) -> None:
        self.module.start(batches, reduce)

    def loss(self, model: nn.Module, batch: Any, step: int) -> Loss:
        return model(batch, step)

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        self.module.end_step(step, applied, reduce)

    def state(self) -> dict[str, Tensor]:
        return self.module.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.module.load_state(state)


def model_dir(config: FamilyConfig, name: str) -> Path:
    """Directory of the training of a model."""
    return Path(config.run_dir) / "models" / name


def sections_of(config: FamilyConfig) -> dict[str, Any]:
    """The sections of the configuration that models are built and trained from."""
    return {key: as_dict(config)[key] for key in ("images", "binarise", "members", "train", "seed")}


def finished_models(config: FamilyConfig) -> list[str]:
    """Names of the models that have been trained, after a check that this configuration fits them.

    Raises:
        UserError: a model was trained with another configuration.
    """
    names = [name for name in MEMBERS if finished_step(model_dir(config, name)) >= 0]
    for name in names:
        compare_configuration(model_dir(config, name), sections_of(config))
    return names


def build_member(name: str, config: FamilyConfig, splits: Splits) -> Member:
    """A new model, randomly initialized from the seed."""
    setting = Setting(
        config.members,
        config.images.channels,
        config.images.height_width,
        len(splits.train.classes),
        "bernoulli" if config.binarise else "gaussian",
        config.train,
        config.seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MEMBERS[name](setting)


def load_member(name: str, config: FamilyConfig, splits: Splits) -> Member:
    """The trained model, in eval mode.

    Raises:
        UserError: the model has not been trained, or its files are damaged.
    """
    directory, made_by = model_dir(config, name), "pipelines/compare.py"
    weights = read_weights(directory, read_description(directory, made_by), made_by)
    member = build_member(name, config, splits)
    load_weights(member, weights, directory / "model.safetensors", "model.json")
    return member.eval().requires_grad_(False)


def train_member(name: str, config: FamilyConfig, splits: Splits, accelerator: Accelerator) -> None:
    """Train a model to `train.total_steps` and export it, resuming from its newest checkpoint.

    Raises:
        UserError: the configuration differs from the one that the model was started with, or the loss is not finite.
    """
    directory, settings, sections = model_dir(config, name), config.train, sections_of(config)
    accumulation = settings.gradient_accumulation_steps
    local_batch = local_batch_size("train.batch_size", settings.batch_size, accelerator.num_processes, accumulation)
    if MEMBERS[name].closed_form and finished_step(directory) >= 0:
        accelerator.print(f"{directory}: finished, nothing to do (fitted in closed form)")
        return
    if not begin_training(directory, sections, settings, accelerator):
        return
    member = build_member(name, config, splits).to(accelerator.device)

    def batches(first_step: int) -> Iterator[ImageBatch]:
        place = (accelerator.process_index, accelerator.num_processes)
        order = StepOrder(len(splits.train), settings.batch_size, config.seed, first_step, accumulation, *place)
        flip = Augmentation(config.seed, config.images.horizontal_flip, None)
        return load_batches(splits.train, order, workers=0, augmentation=flip)

    def describe() -> dict[str, Any]:
        mine = in_order(share_of(list(range(len(splits.train))), accelerator), local_batch)
        with torch.no_grad():
            member.eval().finish(_on_device(load_batches(splits.train, mine, 0), accelerator), accelerator.reduce)
        return {"kind": name}

    with recorded(directory, sections, config, accelerator):
        if member.closed_form:
            began = time.monotonic()
            description = {**describe(), "step": settings.total_steps}
            with refusals_reach_all(accelerator):
                if accelerator.is_main_process:
                    seconds = {"seconds": time.monotonic() - began}
                    MetricsLog(directory / "metrics.jsonl", 0).write(settings.total_steps, "train", seconds)
                    export_model(directory, member.state_dict(), description)
        else:
            window = validation_window(len(splits.validation), VALIDATION_IMAGES)

            def validate(step: int) -> dict[str, float]:
                return validation(member, splits, window, config.evaluation.batch_size, accelerator)

            objective = MemberObjective(member)
            train(objective, batches, validate, settings, directory, config.seed, accelerator, describe)
    for tracker in accelerator.trackers:  # end_training would also end the process group, which the next model needs
        tracker.finish()
    accelerator.trackers = []


def validation(
    member: Member, splits: Splits, window: list[int], batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """Mean squared error of reconstructions, of pixels in [-1, 1], and the nats of the bound and of the exchange."""

    def values() -> Iterator[dict[str, Tensor | None]]:
        for number, batch in numbered_batches(splits.validation, window, batch_size, accelerator):
            generator = keyed_generator(member.setting.seed, "validation", number)
            bound = member.bound(batch.images, batch.labels, generator)
            yield {
                "mse": squared_errors(member, batch),
                "rate": bound and bound.rate,
                "distortion": bound and bound.distortion,
                "exchange_loss": member.exchange_loss(batch.images, batch.labels, generator),
            }

    found = means(("mse", "rate", "distortion", "exchange_loss"), values(), accelerator)
    return {key: x for key, x in found.items() if x is not None}


def squared_errors(member: Member, batch: ImageBatch) -> Tensor | None:
    """Mean squared error of the pixels in [-1, 1] of each reconstruction, (B,); None: the model has none."""
    reconstructions = member.reconstruct(batch.images, batch.labels)
    if reconstructions is None:
        return None
    return ((reconstructions.float() - batch.images.float()) / 127.5).square().mean(dim=(1, 2, 3))


def means(
    keys: Sequence[str], batches: Iterable[dict[str, Tensor | None]], accelerator: Accelerator
) -> dict[str, float | None]:
    """Means of figures over the images of all processes, some of which may have no batch.

    Args:
        keys: names of the figures, the same in every process.
        batches: for each of this process's batches the value of each figure for each image, (B,), or None; lazy.
        accelerator: reduces over the processes.

    Returns:
        The means by name; None where no process has a value.
    """
    wide = widest_float(accelerator.device)
    sums = torch.zeros(len(keys), 2, dtype=wide, device=accelerator.device)  # of values and of ones
    for values in batches:
        for i, key in enumerate(keys):
            x = values[key]
            if x is not None:
                sums[i] += torch.stack([x.to(wide).sum(), torch.tensor(len(x), dtype=wide, device=x.device)])
    totals = accelerator.reduce(sums).tolist()
    return {key: total / count if count else None for key, (total, count) in zip(keys, totals, strict=True)}


def _on_device(batches: Iterator[ImageBatch], accelerator: Accelerator) -> Iterator[ImageBatch]:
    return (ImageBatch(*(x.to(accelerator.device) for x in batch)) for batch in batches)
