"""Checks of a configuration, within and across its sections, before anything is written."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vqvae2.config.fields import AutoencoderConfig, Config, EvaluationConfig, ImagesConfig, PriorConfig, TrainConfig
from vqvae2.errors import UserError

LARGEST_SIDE = 16_384  # pixels
LARGEST_BATCH = 2**20
MOST_COPIES = 1000
LARGEST_PARAMETERS = 10**11  # per model; each process holds the whole model: 16 bytes per parameter in training
LARGEST_WORKERS = 1024

SOURCES = r"folder|shapes|huggingface|torchvision:\w+|huggingface:[\w.-]+(/[\w.-]+)?(:[^<>:/\\|?*]+)?"
COLUMNS = ("image_column", "label_column")
UNUSED = {  # fields of images that a source does not read
    "shapes": ("root", "validation_root", "validation_fraction", *COLUMNS),
    "folder": COLUMNS,
    "torchvision:": ("validation_root", *COLUMNS),
    "huggingface": ("validation_root",),
    "huggingface:": ("root", "validation_root"),
}


class Requirement(NamedTuple):
    """One check of a field.

    Attributes:
        holds: whether the value is valid.
        key: full name of the field, for the message.
        value: value of the field, for the message.
        right: which values are valid, as an instruction to the user.
    """

    holds: bool
    key: str
    value: Any
    right: str


def check(config: Config) -> None:
    """Raise a UserError that lists every field whose value is not valid."""
    _refuse(_requirements(config))


def check_parts(
    images: ImagesConfig, train: TrainConfig, evaluation: EvaluationConfig, others: Iterable[Requirement]
) -> None:
    """Check the sections of a configuration that is not a run's, as `check` does; `others` are its own requirements."""
    parts = [*_image_requirements(images), *_train_requirements("train", train), *_evaluation_requirements(evaluation)]
    _refuse([*parts, *others])


def _refuse(requirements: Iterable[Requirement]) -> None:
    failed = [x for x in requirements if not x.holds]
    if failed:
        raise UserError("\n".join(f"{x.key}: {x.value!r} is not valid: {x.right}" for x in failed))


def _requirements(config: Config) -> Iterator[Requirement]:
    yield _is_path("run_dir", config.run_dir)
    yield Requirement(config.seed >= 0, "seed", config.seed, "use an integer, 0 or more")
    yield from _image_requirements(config.images)
    yield from _autoencoder_requirements(config.autoencoder)
    yield from _size_requirements(config)
    yield from _train_requirements("stage1", config.stage1)
    yield _at_least("stage2.batch_size", config.stage2.batch_size, 1)
    yield _at_most("stage2.batch_size", config.stage2.batch_size, LARGEST_BATCH)
    copies = config.stage2.cropped_copies
    yield _at_least("stage2.cropped_copies", copies, 0)
    yield _at_most("stage2.cropped_copies", copies, MOST_COPIES)
    crops = not copies or config.images.random_resized_crop is not None
    yield Requirement(crops, "stage2.cropped_copies", copies, "set images.random_resized_crop, or use 0")
    names = [x.name for x in config.autoencoder.levels]
    yield Requirement(
        set(names) == set(config.priors), "priors", sorted(config.priors), f"use one entry for each level of {names}"
    )
    for name, prior in config.priors.items():
        yield from _prior_requirements(f"priors.{name}", prior, coarsest=names[:1] == [name])
        yield from _train_requirements(f"priors.{name}.train", prior.train)
    yield from _evaluation_requirements(config.evaluation)


def _image_requirements(images: ImagesConfig) -> Iterator[Requirement]:
    known = re.fullmatch(SOURCES, images.source)
    right = "use folder, shapes, torchvision:NAME, huggingface, huggingface:NAME or huggingface:NAME:CONFIG"
    yield Requirement(bool(known), "images.source", images.source, right)
    for name in ("root", "validation_root"):
        if (path := getattr(images, name)) is not None:
            yield _is_path(f"images.{name}", path)
    if images.source in ("folder", "huggingface"):
        yield Requirement(bool(images.root), "images.root", images.root, "set it to the folder of training images")
    yield from _unused_image_requirements(images)
    fraction = images.validation_fraction
    yield Requirement(0 < fraction < 1, "images.validation_fraction", fraction, "use a number above 0 and below 1")
    colour = images.background
    is_colour = len(colour) == 3 and all(0 <= x <= 255 for x in colour)
    yield Requirement(
        is_colour, "images.background", colour, "use three integers from 0 to 255, such as [255, 255, 255]"
    )
    crop = images.random_resized_crop
    is_range = crop is None or (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1)
    yield Requirement(
        is_range,
        "images.random_resized_crop",
        crop,
        "use null, or [minimum, maximum] above 0 and at most 1, such as [0.5, 1.0]",
    )
    unreadable = images.max_unreadable_fraction
    yield Requirement(0 <= unreadable <= 1, "images.max_unreadable_fraction", unreadable, "use a number from 0 to 1")
    yield Requirement(images.channels in (1, 3), "images.channels", images.channels, "use 3 (RGB) or 1 (grayscale)")
    yield _at_least("images.workers", images.workers, 0)
    yield _at_most("images.workers", images.workers, LARGEST_WORKERS)
    if images.max_images is not None:
        yield _at_least("images.max_images", images.max_images, 1)


def _unused_image_requirements(images: ImagesConfig) -> Iterator[Requirement]:
    """Refuse fields that the image source does not read, since they would have no effect."""
    kind, colon, _ = images.source.partition(":")
    for name in UNUSED.get(f"{kind}{colon}", ()):
        value, default = getattr(images, name), getattr(ImagesConfig, name)
        right = f"remove it: source {images.source} does not read it"
        yield Requirement(value == default, f"images.{name}", value, right)


def _size_requirements(config: Config) -> Iterator[Requirement]:
    size, levels = config.images.size, config.autoencoder.levels
    sides = [size] if isinstance(size, int) else size
    if len(sides) not in (1, 2) or (not isinstance(size, int) and len(sides) != 2):
        yield Requirement(False, "images.size", size, "use one integer, or [height, width]")
        return
    stride = levels[0].stride if levels else 0
    if stride < 1:
        return
    for side in sides:
        nearest = max(stride, round(side / stride) * stride)
        right = f"use a positive multiple of the coarsest level's stride {stride}, such as {nearest}"
        yield Requirement(side > 0 and side % stride == 0, "images.size", size, right)
        yield _at_most("images.size", side, LARGEST_SIDE)


def _autoencoder_requirements(autoencoder: AutoencoderConfig) -> Iterator[Requirement]:
    levels = autoencoder.levels
    yield Requirement(len(levels) > 0, "autoencoder.levels", levels, "list at least one level")
    for key in ("hidden_channels", "residual_channels"):
        yield _at_least(f"autoencoder.{key}", getattr(autoencoder, key), 2 if key == "hidden_channels" else 1)
    for key in ("residual_layers", "commitment_weight", "revival_window_images", "continuous_steps"):
        yield _at_least(f"autoencoder.{key}", getattr(autoencoder, key), 0)
    for key in ("ema_decay", "level_dropout"):
        yield _below_one(f"autoencoder.{key}", getattr(autoencoder, key))
    dropout = autoencoder.level_dropout
    hides = len(levels) > 1 or dropout == 0
    yield Requirement(
        hides, "autoencoder.level_dropout", dropout, "use 0 with a single level: there is no finer level to drop"
    )
    widths = autoencoder.hidden_channels, autoencoder.residual_channels
    parameters = len(levels) * max(1, autoencoder.residual_layers) * widths[0] * max(widths)
    parameters += sum(x.codebook_size * x.code_dim for x in levels)
    yield _fits("autoencoder", parameters, "hidden_channels, residual_channels, codebook_size or code_dim")
    names = [x.name for x in levels]
    yield Requirement(len(set(names)) == len(names), "autoencoder.levels", names, "use a unique name for each level")
    for i, level in enumerate(levels):
        key = f"autoencoder.levels[{i}]"
        yield Requirement(
            re.fullmatch(r"[A-Za-z]\w*", level.name) is not None,
            f"{key}.name",
            level.name,
            "use letters, digits and _, beginning with a letter",
        )
        power = level.stride >= 2 and level.stride & (level.stride - 1) == 0
        yield Requirement(power, f"{key}.stride", level.stride, "use a power of two, 2 or more")
        if i > 0:
            coarser = levels[i - 1].stride
            right = f"use less than {coarser}, the stride of the preceding level: levels are listed coarsest first"
            yield Requirement(level.stride < coarser, f"{key}.stride", level.stride, right)
        yield _at_least(f"{key}.codebook_size", level.codebook_size, 2)
        yield _at_least(f"{key}.code_dim", level.code_dim, 1)


def _prior_requirements(key: str, prior: PriorConfig, coarsest: bool) -> Iterator[Requirement]:
    for name in ("hidden_channels", "residual_channels", "layers", "attention_heads"):
        yield _at_least(f"{key}.{name}", getattr(prior, name), 1)
    for name in ("output_layers", "conditioning_layers"):
        yield _at_least(f"{key}.{name}", getattr(prior, name), 0)
    odd = prior.kernel_size >= 3 and prior.kernel_size % 2 == 1
    yield Requirement(odd, f"{key}.kernel_size", prior.kernel_size, "use an odd number, 3 or more")
    if prior.right_reach is not None:
        yield _at_least(f"{key}.right_reach", prior.right_reach, 0)
    right = f"use a number from 0 to {prior.layers}, the number of layers"
    fits = 0 <= prior.attention_layers <= prior.layers
    yield Requirement(fits, f"{key}.attention_layers", prior.attention_layers, right)
    if prior.attention_layers > 0 and prior.attention_heads > 0:
        right = f"use a divisor of hidden_channels, {prior.hidden_channels}"
        divides = prior.hidden_channels % prior.attention_heads == 0
        yield Requirement(divides, f"{key}.attention_heads", prior.attention_heads, right)
    for name in ("dropout", "label_dropout"):
        yield _below_one(f"{key}.{name}", getattr(prior, name))
    layers = prior.layers + prior.output_layers + prior.conditioning_layers
    parameters = layers * prior.hidden_channels * prior.residual_channels
    yield _fits(key, parameters, "hidden_channels, residual_channels or layers")
    if coarsest:
        right = "use 0 for the coarsest level: there are no coarser codes to condition on"
        yield Requirement(
            prior.conditioning_layers == 0, f"{key}.conditioning_layers", prior.conditioning_layers, right
        )


def _train_requirements(key: str, train: TrainConfig) -> Iterator[Requirement]:
    for name in ("batch_size", "gradient_accumulation_steps", "save_every", "validate_every", "log_every"):
        yield _at_least(f"{key}.{name}", getattr(train, name), 1)
    source, steps = train.start_from, train.total_steps
    right = "use 1 or more" if source is None else "use 0 or more"
    yield Requirement(steps >= (source is None), f"{key}.total_steps", steps, right)
    is_source = source is None or (bool(source.strip()) and "\0" not in source)
    right = "use the directory of a run, the folder of a saved model, a repository USER/NAME, or null"
    yield Requirement(is_source, f"{key}.start_from", source, right)
    scaled = train.shard_optimizer and train.mixed_precision == "fp16"
    right = "use false, or mixed_precision bf16: the gradient scaling of fp16 needs all parameters in every process"
    yield Requirement(not scaled, f"{key}.shard_optimizer", train.shard_optimizer, right)
    yield _at_most(f"{key}.batch_size", train.batch_size, LARGEST_BATCH)
    yield _at_least(f"{key}.warmup_steps", train.warmup_steps, 0)
    for name in ("learning_rate", "gradient_clip"):
        value = getattr(train, name)
        yield Requirement(value is None or 0 < value < math.inf, f"{key}.{name}", value, "use a finite number above 0")
    shrink = train.learning_rate * train.decay
    right = "use a number from 0 to 1 / learning_rate"
    yield Requirement(train.decay == 0 or 0 < shrink <= 1, f"{key}.weight_decay", train.decay, right)
    ignored = train.decay != 0 and train.optimizer != "muon"
    yield Requirement(not ignored, f"{key}.weight_decay", train.decay, "use 0, or optimizer muon")
    decay = train.weight_average_decay
    yield Requirement(
        decay is None or 0 < decay < 1,
        f"{key}.weight_average_decay",
        decay,
        "use a number above 0 and below 1, or null",
    )


def _evaluation_requirements(evaluation: EvaluationConfig) -> Iterator[Requirement]:
    for name, least in (("num_samples", 2), ("classifier_size", 32), ("classifier_steps", 1), ("batch_size", 1)):
        yield _at_least(f"evaluation.{name}", getattr(evaluation, name), least)
    yield _at_most("evaluation.classifier_size", evaluation.classifier_size, LARGEST_SIDE)
    yield _at_most("evaluation.batch_size", evaluation.batch_size, LARGEST_BATCH)
    temperature, top_p = evaluation.temperature, evaluation.top_p
    positive = 0 < temperature < math.inf
    yield Requirement(positive, "evaluation.temperature", temperature, "use a finite number above 0")
    share = top_p is None or 0 < top_p <= 1
    yield Requirement(share, "evaluation.top_p", top_p, "use a number above 0 and at most 1, or null")
    yield _at_least("evaluation.guidance", evaluation.guidance, 0)


def _at_least(key: str, value: float, least: float) -> Requirement:
    return Requirement(value >= least, key, value, f"use {least} or more")


def _at_most(key: str, value: float, most: float) -> Requirement:
    return Requirement(not value > most, key, value, f"use {most} or less")


def _fits(key: str, parameters: int, remedy: str) -> Requirement:
    """Require a model to fit into one process; `parameters` is a lower bound of its number of parameters."""
    right = f"one process holds at most {LARGEST_PARAMETERS:,} parameters: reduce {remedy}"
    return Requirement(parameters <= LARGEST_PARAMETERS, key, f"over {parameters:,} parameters", right)


def _is_path(key: str, value: str) -> Requirement:
    return Requirement(bool(value.strip()) and "\0" not in value, key, value, "use the path of a folder or file")


def _below_one(key: str, value: float) -> Requirement:
    return Requirement(0 <= value < 1, key, value, "use 0 or more and less than 1")


def local_batch_size(key: str, batch_size: int, processes: int, accumulation: int = 1) -> int:
    """Return the number of images of the global batch that one process handles in one pass.

    Raises:
        UserError: the batch size is not a multiple of processes x accumulation; `key` names the field.
    """
    share, rest = divmod(batch_size, processes * accumulation)
    if rest or share == 0:
        raise UserError(
            f"{key}: {batch_size} cannot be divided among {processes} processes x {accumulation} accumulation steps: "
            f"use a multiple of {processes * accumulation}"
        )
    return share
