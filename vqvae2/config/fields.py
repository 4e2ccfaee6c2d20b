"""Every field of a run's configuration with its meaning."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

SAMPLES_AT_A_TIME = 16  # images of a process, where nothing else is given
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


class LevelGrid(NamedTuple):
    """The grid of codes of one level."""

    name: str
    height: int
    width: int
    codebook_size: int


def level_grids(levels: list[LevelConfig], height_width: tuple[int, int]) -> list[LevelGrid]:
    """The grids of codes that an image of `height_width` pixels has, coarsest first."""
    height, width = height_width
    return [LevelGrid(x.name, height // x.stride, width // x.stride, x.codebook_size) for x in levels]


def compression_ratio(autoencoder: AutoencoderConfig, height_width: tuple[int, int]) -> float:
    """How many times smaller the codes of an image are than its 24-bit pixels, at log2 K bits a code."""
    height, width = height_width
    code_bits = sum(
        x.height * x.width * math.log2(x.codebook_size) for x in level_grids(autoencoder.levels, height_width)
    )
    return 24 * height * width / code_bits


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and values."""
    return dataclasses.asdict(config)
