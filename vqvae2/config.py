"""Every field of a run's configuration with its meaning, and the checks that go across sections."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from vqvae2.errors import UserError

MixedPrecision = Literal["auto", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class ImagesConfig:
    """Where the images come from and how they are brought to one size.

    Attributes:
        source: `folder` (of class folders, or a flat one), `shapes` (drawn on the fly), or `torchvision:NAME`.
        root: the folder of training images, or a CSV file with the columns path and label; for torchvision, where it
            keeps its files.
        validation_root: a folder of held-out images of the same layout; null: `validation_fraction` of `root`.
        validation_fraction: share of the images held out where there is no other validation set.
        size: side of the square images in pixels, or [height, width].
        channels: 3 for RGB, 1 for grayscale.
        background: red, green and blue, 0 to 255, of what transparent pixels are laid over.
        horizontal_flip: mirror every other training image at random.
        random_resized_crop: smallest and largest share of its area that is kept of a training image, such as
            [0.5, 1.0]; null: its centre, whole.
        workers: processes that load images; 0: the training process itself.
        max_unreadable_fraction: share of the files that may be unreadable and are skipped; more stop the run.
        max_images: use at most this many training images; null: all (of `shapes`: 20000).
    """

    source: str = "shapes"
    root: str | None = None
    validation_root: str | None = None
    validation_fraction: float = 0.05
    size: int | list[int] = 256
    channels: int = 3
    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    horizontal_flip: bool = True
    random_resized_crop: list[float] | None = None
    workers: int = 4
    max_unreadable_fraction: float = 0.2
    max_images: int | None = None

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


@dataclass(frozen=True)
class LevelConfig:
    """One latent map of the hierarchy.

    Attributes:
        name: the word this level goes by, such as top or bottom.
        stride: image pixels per code along a side; a power of two.
        codebook_size: number of code vectors, K.
        code_dim: length of a code vector, D.
    """

    name: str
    stride: int
    codebook_size: int = 512
    code_dim: int = 64


@dataclass(frozen=True)
class AutoencoderConfig:
    """The hierarchical VQ-VAE (Razavi et al. 2019).

    Attributes:
        levels: the latent maps, coarsest first.
        hidden_channels: width of the encoders and decoders.
        residual_channels: width inside a residual block.
        residual_layers: residual blocks in each encoder and decoder.
        reconstruction_loss: mse (mean squared error) or l1 (mean absolute error) of pixels in [-1, 1].
        commitment_weight: beta, the weight of the commitment loss.
        codebook_update: ema (moving average of the features) or loss (gradient of the codebook loss).
        ema_decay: gamma, the decay of that moving average.
        revival_window_images: codes unused over this many images, and in the beginning over a 64th of all images seen,
            are revived from current features; 0: never.
        continuous_steps: steps trained without quantisation before the codebooks start from the features; at most
            half of all.
        level_dropout: share of training images of which the decoder sees the coarse levels alone, for these to hold
            what they can: without it, in short runs, the finest level does all the work.
    """

    levels: list[LevelConfig]
    hidden_channels: int = 128
    residual_channels: int = 64
    residual_layers: int = 2
    reconstruction_loss: Literal["mse", "l1"] = "mse"
    commitment_weight: float = 0.25
    codebook_update: Literal["ema", "loss"] = "ema"
    ema_decay: float = 0.99
    revival_window_images: int = 4096
    continuous_steps: int = 50
    level_dropout: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """How one model is trained.

    Attributes:
        batch_size: images in an optimiser step, over all processes and accumulation steps.
        total_steps: optimiser steps.
        learning_rate: Adam's highest rate, reached after the warm-up; stage 1 multiplies it in layers with few inputs
            (see Autoencoder.rate_factors).
        warmup_steps: steps over which the rate rises from zero.
        schedule: cosine (falls to zero at total_steps) or constant.
        gradient_clip: largest norm of the gradient; null: no clipping.
        gradient_accumulation_steps: parts in which a process works through its share of the batch.
        mixed_precision: auto (bf16 where the processor or GPU is fast at it, else no), no, bf16, fp16 (CUDA only).
        weight_average_decay: export the weights' exponential moving average of this decay; null: the last ones.
        compile: run the model through torch.compile.
        save_every: steps between checkpoints.
        validate_every: steps between validations.
        log_every: steps between lines of metrics.jsonl.
    """

    batch_size: int = 128
    total_steps: int = 250_000
    learning_rate: float = 3e-4
    warmup_steps: int = 1000
    schedule: Literal["cosine", "constant"] = "cosine"
    gradient_clip: float | None = 1.0
    gradient_accumulation_steps: int = 1
    mixed_precision: MixedPrecision = "auto"
    weight_average_decay: float | None = None
    compile: bool = False
    save_every: int = 1000
    validate_every: int = 1000
    log_every: int = 50


@dataclass(frozen=True)
class Stage2Config:
    """How images are turned into codes.

    Attributes:
        batch_size: images encoded at a time, over all processes.
        mixed_precision: as in stage1; what was used is recorded in the codes' header.
        flipped_copies: write the codes of each training image's mirror image too.
    """

    batch_size: int = 128
    mixed_precision: MixedPrecision = "auto"
    flipped_copies: bool = False


@dataclass(frozen=True)
class PriorConfig:
    """The gated causal prior of one level.

    Attributes:
        hidden_channels: width of both stacks.
        residual_channels: width inside a gated residual block.
        layers: gated layers in each stack.
        kernel_size: side of the causal convolutions, odd; a layer reaches kernel_size // 2 codes up and sideways.
        attention_layers: how many of the layers are followed by causal self-attention over all earlier codes.
        attention_heads: heads of the attention; read only where attention_layers is not 0.
        dropout: share of activations dropped after each residual block and in the attention.
        output_layers: residual 1x1 layers between the stacks and the logits.
        conditioning_layers: residual blocks over the coarser levels' codes; 0 for the coarsest level.
        label_dropout: share of training images whose label is hidden; above 0 it allows guidance and label none.
        activation_checkpointing: compute each layer again in the backward pass instead of keeping its activations:
            less memory, about a third more time.
        train: how this prior is trained.
    """

    hidden_channels: int = 256
    residual_channels: int = 256
    layers: int = 20
    kernel_size: int = 5
    attention_layers: int = 0
    attention_heads: int = 8
    dropout: float = 0.1
    output_layers: int = 0
    conditioning_layers: int = 0
    label_dropout: float = 0.1
    activation_checkpointing: bool = False
    train: TrainConfig = field(default_factory=lambda: TrainConfig(weight_average_decay=0.9999))


@dataclass(frozen=True)
class EvaluationConfig:
    """How a finished run is judged.

    Attributes:
        num_samples: images that are sampled, to compare with real ones and to train a classifier on; as many real
            ones are compared, if there are.
        temperature: of these samples.
        top_p: of these samples.
        guidance: of these samples.
        classifier: the torchvision ResNet that is trained on real images, on reconstructions and on samples.
        classifier_size: side in pixels that images are scaled to for the classifiers.
        classifier_steps: updates of each classifier.
        batch_size: images of a classifier's update, over all processes; elsewhere images of a process at a time.
    """

    num_samples: int = 5000
    temperature: float = 1.0
    top_p: float | None = None
    guidance: float = 1.0
    classifier: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    classifier_size: int = 128
    classifier_steps: int = 2000
    batch_size: int = 64


@dataclass(frozen=True)
class Config:
    """One run: all its stages.

    Attributes:
        run_dir: the folder that every stage writes into and reads from.
        images: where the images come from.
        autoencoder: the hierarchical VQ-VAE.
        stage1: how the autoencoder is trained.
        stage2: how images are turned into codes.
        priors: the prior of each level, by the level's name.
        evaluation: how the finished run is judged.
        seed: the number from which all randomness of training is derived.
        trackers: trackers to report to besides metrics.jsonl: tensorboard, wandb.
    """

    run_dir: str
    images: ImagesConfig
    autoencoder: AutoencoderConfig
    stage1: TrainConfig
    stage2: Stage2Config
    priors: dict[str, PriorConfig]
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)


class LevelShape(NamedTuple):
    """The grid of codes of one level."""

    name: str
    height: int
    width: int
    codebook_size: int


def level_shapes(levels: list[LevelConfig], height_width: tuple[int, int]) -> list[LevelShape]:
    """The grids of codes that an image of `height_width` pixels has, coarsest first."""
    height, width = height_width
    return [LevelShape(x.name, height // x.stride, width // x.stride, x.codebook_size) for x in levels]


def compression_ratio(autoencoder: AutoencoderConfig, height_width: tuple[int, int]) -> float:
    """How many times smaller the codes of an image are than its 24-bit pixels, at log2 K bits a code."""
    height, width = height_width
    code_bits = sum(
        x.height * x.width * math.log2(x.codebook_size) for x in level_shapes(autoencoder.levels, height_width)
    )
    return 24 * height * width / code_bits


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and values."""
    return dataclasses.asdict(config)


class Requirement(NamedTuple):
    """One check: whether it holds, and if not, the key, its value and what would be right."""

    holds: bool
    key: str
    value: Any
    right: str


def check(config: Config) -> None:
    """Raise a UserError that lists every field whose value cannot work, before anything is written."""
    failed = [x for x in _requirements(config) if not x.holds]
    if failed:
        raise UserError("\n".join(f"{x.key}: {x.value!r} will not do: {x.right}" for x in failed))


def _requirements(config: Config) -> Iterator[Requirement]:
    yield Requirement(bool(config.run_dir.strip()), "run_dir", config.run_dir, "name a folder")
    yield Requirement(config.seed >= 0, "seed", config.seed, "a whole number, 0 or more")
    yield from _image_requirements(config.images)
    yield from _autoencoder_requirements(config.autoencoder)
    yield from _size_requirements(config)
    yield from _train_requirements("stage1", config.stage1)
    yield _at_least("stage2.batch_size", config.stage2.batch_size, 1)
    names = [x.name for x in config.autoencoder.levels]
    yield Requirement(
        set(names) == set(config.priors), "priors", sorted(config.priors), f"one entry for each level, here {names}"
    )
    for name, prior in config.priors.items():
        yield from _prior_requirements(f"priors.{name}", prior, coarsest=names[:1] == [name])
        yield from _train_requirements(f"priors.{name}.train", prior.train)
    yield from _evaluation_requirements(config.evaluation)


def _image_requirements(images: ImagesConfig) -> Iterator[Requirement]:
    known = images.source in ("folder", "shapes") or re.fullmatch(r"torchvision:\w+", images.source)
    yield Requirement(bool(known), "images.source", images.source, "folder, shapes or torchvision:NAME")
    if images.source == "folder":
        yield Requirement(bool(images.root), "images.root", images.root, "the folder with the training images")
    fraction = images.validation_fraction
    yield Requirement(0 < fraction < 1, "images.validation_fraction", fraction, "more than 0 and less than 1")
    colour = images.background
    is_colour = len(colour) == 3 and all(0 <= x <= 255 for x in colour)
    yield Requirement(is_colour, "images.background", colour, "three numbers from 0 to 255, such as [255, 255, 255]")
    crop = images.random_resized_crop
    is_range = crop is None or (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1)
    yield Requirement(is_range, "images.random_resized_crop", crop, "null, or two shares up to 1, such as [0.5, 1.0]")
    unreadable = images.max_unreadable_fraction
    yield Requirement(0 <= unreadable <= 1, "images.max_unreadable_fraction", unreadable, "from 0 to 1")
    yield Requirement(images.channels in (1, 3), "images.channels", images.channels, "3 for RGB or 1 for grayscale")
    yield _at_least("images.workers", images.workers, 0)
    if images.max_images is not None:
        yield _at_least("images.max_images", images.max_images, 1)


def _size_requirements(config: Config) -> Iterator[Requirement]:
    size, levels = config.images.size, config.autoencoder.levels
    sides = [size] if isinstance(size, int) else size
    if len(sides) not in (1, 2) or (not isinstance(size, int) and len(sides) != 2):
        yield Requirement(False, "images.size", size, "one side, or [height, width]")
        return
    stride = levels[0].stride if levels else 0
    if stride < 1:
        return
    for side in sides:
        nearest = max(stride, round(side / stride) * stride)
        right = f"a positive multiple of the coarsest level's stride {stride}, such as {nearest}"
        yield Requirement(side > 0 and side % stride == 0, "images.size", size, right)


def _autoencoder_requirements(autoencoder: AutoencoderConfig) -> Iterator[Requirement]:
    levels = autoencoder.levels
    yield Requirement(len(levels) > 0, "autoencoder.levels", levels, "at least one level")
    for key in ("hidden_channels", "residual_channels"):
        yield _at_least(f"autoencoder.{key}", getattr(autoencoder, key), 2 if key == "hidden_channels" else 1)
    for key in ("residual_layers", "commitment_weight", "revival_window_images", "continuous_steps"):
        yield _at_least(f"autoencoder.{key}", getattr(autoencoder, key), 0)
    for key in ("ema_decay", "level_dropout"):
        yield _below_one(f"autoencoder.{key}", getattr(autoencoder, key))
    dropout = autoencoder.level_dropout
    hides = len(levels) > 1 or dropout == 0
    yield Requirement(hides, "autoencoder.level_dropout", dropout, "0 where there is one level: none is finer")
    names = [x.name for x in levels]
    yield Requirement(len(set(names)) == len(names), "autoencoder.levels", names, "a different name for each level")
    for i, level in enumerate(levels):
        key = f"autoencoder.levels[{i}]"
        yield Requirement(
            re.fullmatch(r"[A-Za-z]\w*", level.name) is not None, f"{key}.name", level.name, "letters, digits and _"
        )
        power = level.stride >= 2 and level.stride & (level.stride - 1) == 0
        yield Requirement(power, f"{key}.stride", level.stride, "a power of two, 2 or more")
        if i > 0:
            coarser = levels[i - 1].stride
            right = f"less than {coarser}, the stride of the level before it: levels are listed coarsest first"
            yield Requirement(level.stride < coarser, f"{key}.stride", level.stride, right)
        yield _at_least(f"{key}.codebook_size", level.codebook_size, 2)
        yield _at_least(f"{key}.code_dim", level.code_dim, 1)


def _prior_requirements(key: str, prior: PriorConfig, coarsest: bool) -> Iterator[Requirement]:
    for name in ("hidden_channels", "residual_channels", "layers", "attention_heads"):
        yield _at_least(f"{key}.{name}", getattr(prior, name), 1)
    for name in ("output_layers", "conditioning_layers"):
        yield _at_least(f"{key}.{name}", getattr(prior, name), 0)
    odd = prior.kernel_size >= 3 and prior.kernel_size % 2 == 1
    yield Requirement(odd, f"{key}.kernel_size", prior.kernel_size, "an odd number, 3 or more")
    right = f"from 0 to the number of layers, {prior.layers}"
    fits = 0 <= prior.attention_layers <= prior.layers
    yield Requirement(fits, f"{key}.attention_layers", prior.attention_layers, right)
    if prior.attention_layers > 0 and prior.attention_heads > 0:
        right = f"a divisor of hidden_channels, {prior.hidden_channels}"
        divides = prior.hidden_channels % prior.attention_heads == 0
        yield Requirement(divides, f"{key}.attention_heads", prior.attention_heads, right)
    for name in ("dropout", "label_dropout"):
        yield _below_one(f"{key}.{name}", getattr(prior, name))
    if coarsest:
        right = "0 for the coarsest level: there are no coarser codes to condition on"
        yield Requirement(
            prior.conditioning_layers == 0, f"{key}.conditioning_layers", prior.conditioning_layers, right
        )


def _train_requirements(key: str, train: TrainConfig) -> Iterator[Requirement]:
    positive = ("batch_size", "total_steps", "gradient_accumulation_steps", "save_every", "validate_every", "log_every")
    for name in positive:
        yield _at_least(f"{key}.{name}", getattr(train, name), 1)
    yield _at_least(f"{key}.warmup_steps", train.warmup_steps, 0)
    for name in ("learning_rate", "gradient_clip"):
        value = getattr(train, name)
        yield Requirement(value is None or 0 < value < math.inf, f"{key}.{name}", value, "a number above 0")
    decay = train.weight_average_decay
    yield Requirement(decay is None or 0 < decay < 1, f"{key}.weight_average_decay", decay, "between 0 and 1, or null")


def _evaluation_requirements(evaluation: EvaluationConfig) -> Iterator[Requirement]:
    for name, least in (("num_samples", 2), ("classifier_size", 32), ("classifier_steps", 1), ("batch_size", 1)):
        yield _at_least(f"evaluation.{name}", getattr(evaluation, name), least)
    temperature, top_p = evaluation.temperature, evaluation.top_p
    positive = 0 < temperature < math.inf
    yield Requirement(positive, "evaluation.temperature", temperature, "a number above 0")
    share = top_p is None or 0 < top_p <= 1
    yield Requirement(share, "evaluation.top_p", top_p, "above 0 and at most 1, or null")
    yield _at_least("evaluation.guidance", evaluation.guidance, 0)


def _at_least(key: str, value: float, least: float) -> Requirement:
    return Requirement(value >= least, key, value, f"{least} or more")


def _below_one(key: str, value: float) -> Requirement:
    return Requirement(0 <= value < 1, key, value, "0 or more and less than 1")


def local_batch_size(key: str, batch_size: int, processes: int, accumulation: int = 1) -> int:
    """A process's share of the global batch in one pass; a UserError where it does not come out even."""
    share, rest = divmod(batch_size, processes * accumulation)
    if rest or share == 0:
        raise UserError(
            f"{key}: {batch_size} cannot be split over {processes} processes x {accumulation} accumulation steps: "
            f"use a multiple of {processes * accumulation}"
        )
    return share
