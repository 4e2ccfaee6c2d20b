"""The fields of a run's configuration. Their descriptions are the --help texts of the flags."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

SAMPLES_AT_A_TIME = 16  # images per batch of each process, unless a batch size is given
MUON_WEIGHT_DECAY = 0.3  # best of 0, 0.1, 0.3 and 1 in short runs, see vqvae2/prior/README.md
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class ImagesConfig:
    """The images of a run and how they are preprocessed.

    Attributes:
        source: Source of the images: `folder` (image files), `shapes` (synthetic images of shapes, generated when they
            are loaded), `torchvision:NAME` (the torchvision dataset NAME), `huggingface:NAME` (the dataset repository
            NAME of the Hugging Face Hub, such as user/pictures), `huggingface:NAME:CONFIG` (its configuration CONFIG)
            or `huggingface` (a folder in the formats of the library `datasets`). The last three need
            `pip install 'vqvae2[datasets]'`. Their validation images are the split validation, else test, unless it
            has no labels; else validation_fraction of the split train.
        root: Path of the folder of training images, or of a CSV file with the columns path and label, or path alone.
            Required by source folder. For source torchvision:NAME, the folder of the dataset's files (null: data).
            For source huggingface, a folder of parquet files, of save_to_disk, or of images in class folders.
            Not used by sources shapes and huggingface:NAME.
        validation_root: Path of a folder or CSV file of validation images, with the same layout as `root`; null: hold
            out `validation_fraction` of the images in `root`. Used by source folder only.
        validation_fraction: Fraction of the images held out for validation, above 0 and below 1. Used where the source
            has no separate validation images. Not used by source shapes.
        size: Size of the images in pixels: one integer for square images, or [height, width]. Each side is a multiple
            of the coarsest level's stride and at most 16384.
        channels: Number of image channels: 3 for RGB or 1 for grayscale.
        background: Color behind transparent pixels, as [red, green, blue] with integers from 0 to 255.
        horizontal_flip: Whether each training image is flipped horizontally with probability 0.5: true or false.
        random_resized_crop: Fractions [minimum, maximum] of the image area that a random crop of a training image
            covers, above 0 and at most 1, such as [0.5, 1.0]; null: the largest center crop.
        workers: Number of worker processes that load images for each training process, from 0 to 1024; 0: the training
            process loads them itself.
        max_unreadable_fraction: Largest fraction of image files that may be unreadable, from 0 to 1. Unreadable files
            are skipped; a larger fraction stops the run. Used by sources folder and huggingface only.
        max_images: Maximum number of training images, 1 or more; null: all images. For source shapes, the number of
            training images that are generated (null: 20000).
        image_column: Name of the column of images; null: the only column of type Image. A column of encoded images
            (bytes) can be named, too. Used by source huggingface only.
        label_column: Name of the column of labels; null: the only column of type ClassLabel, else a column label of
            text or integers, else no classes. The classes of text or integers are the distinct values of the split
            train, sorted. Used by source huggingface only.
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
    image_column: str | None = None
    label_column: str | None = None

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])

    @property
    def crop_area(self) -> tuple[float, float] | None:
        """Minimum and maximum fraction of the image area that a random crop covers; None: no random crops."""
        crop = self.random_resized_crop
        return None if crop is None else (crop[0], crop[1])


@dataclass(frozen=True)
class LevelConfig:
    """One level of the hierarchy.

    Attributes:
        name: Name of the level, such as top or bottom: letters, digits and _, beginning with a letter; unique.
        stride: Number of image pixels per code along each side: a power of two, 2 or more, and less than the stride of
            the preceding level.
        codebook_size: Number of code vectors in the codebook (K), 2 or more.
        code_dim: Number of dimensions of a code vector (D), 1 or more.
    """

    name: str
    stride: int
    codebook_size: int = 512
    code_dim: int = 64


@dataclass(frozen=True)
class AutoencoderConfig:
    """The hierarchical VQ-VAE (Razavi et al. 2019).

    Attributes:
        levels: List of the levels, coarsest first; each has a name, a stride, a codebook_size and a code_dim.
        hidden_channels: Number of channels of the hidden layers of the encoders and decoders, 2 or more.
        residual_channels: Number of channels inside a residual block, 1 or more.
        residual_layers: Number of residual blocks in each encoder and each decoder, 0 or more.
        activation: Activation function of the encoders and decoders: gelu, or relu as in the paper, of which some units
            stop learning.
        reconstruction_loss: Reconstruction loss over pixels in [-1, 1]: mse (mean squared error) or l1 (mean absolute
            error).
        commitment_weight: Weight of the commitment loss (beta), 0 or more.
        codebook_update: Update rule of the codebooks: ema (exponential moving average of the features) or loss
            (gradient of the codebook loss).
        ema_decay: Decay of the exponential moving average of the codebooks (gamma), 0 or more and less than 1. Used by
            codebook_update ema only.
        revival_window_images: Number of training images after which an unused code is reset to a current feature, 0 or
            more; 0: never. Early in training, the number is limited to 1/64 of the images seen so far.
        continuous_steps: Number of initial optimizer steps without quantization, 0 or more, limited to half of
            total_steps. The codebooks are initialized from the features after these steps.
        level_dropout: Fraction of training images for which the decoder receives only the coarser levels, 0 or more and
            less than 1; 0 with a single level. In short runs without it, the finest level holds all information.
    """

    levels: list[LevelConfig]
    hidden_channels: int = 128
    residual_channels: int = 64
    residual_layers: int = 2
    activation: Literal["relu", "gelu"] = "gelu"
    reconstruction_loss: Literal["mse", "l1"] = "mse"
    commitment_weight: float = 0.25
    codebook_update: Literal["ema", "loss"] = "ema"
    ema_decay: float = 0.99
    revival_window_images: int = 4096
    continuous_steps: int = 50
    level_dropout: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """Training settings of one model.

    Attributes:
        batch_size: Number of images per optimizer step, over all processes and gradient accumulation steps, 1 or more;
            a multiple of processes x gradient_accumulation_steps.
        start_from: Trained model of the same sizes that training starts from: the directory of a run, a folder that
            Generator.save_pretrained has written, or a Hugging Face repository USER/NAME; null: random weights. The
            number of classes may differ. The codebooks of stage 1 are then not initialized from features.
        total_steps: Number of optimizer steps, 1 or more; 0 with `start_from`, to use its weights unchanged.
        optimizer: Optimizer of the weights of linear and convolution layers: adam, or muon, which learns faster in
            short runs, at learning rates from 0.01 to 0.06. Adam updates all other parameters.
        learning_rate: Peak learning rate, above 0, reached after the warm-up. In stage 1, adam multiplies it by a
            factor for each layer (see Autoencoder.rate_factors).
        weight_decay: With muon, each step multiplies the weights of linear and convolution layers by 1 - weight_decay *
            learning rate, 0 or more; null: 0.3 with muon, 0 with adam, for which it is not implemented.
        warmup_steps: Number of optimizer steps over which the learning rate rises linearly from zero, 0 or more.
        schedule: Learning rate schedule after the warm-up: cosine (decays to zero at total_steps) or constant.
        gradient_clip: Maximum norm of the gradient, above 0; null: no clipping.
        gradient_accumulation_steps: Number of forward and backward passes per optimizer step in each process, 1 or
            more.
        mixed_precision: Precision of the forward pass: auto (bf16 where the CPU or GPU has instructions for it, else
            no), no (float32), bf16 or fp16 (CUDA only). With bf16, Muon's matrix products are in bf16, too.
        weight_average_decay: Decay of the exponential moving average of the parameters that is exported, above 0 and
            below 1; null: export the parameters of the last step.
        compile: Whether the model is compiled with torch.compile: true or false.
        shard_optimizer: Whether each of several processes keeps the optimizer state, averages and best weights of only
            a share of the parameters: true or false. Saves memory, and sends the parameters once per step.
        save_every: Number of optimizer steps between checkpoints, 1 or more.
        validate_every: Number of optimizer steps between validations, 1 or more.
        log_every: Number of optimizer steps between training metrics in metrics.jsonl, 1 or more.
    """

    batch_size: int = 128
    start_from: str | None = None
    total_steps: int = 250_000
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 3e-4
    weight_decay: float | None = None
    warmup_steps: int = 1000
    schedule: Literal["cosine", "constant"] = "cosine"
    gradient_clip: float | None = 1.0
    gradient_accumulation_steps: int = 1
    mixed_precision: MixedPrecision = "auto"
    weight_average_decay: float | None = None
    compile: bool = False
    shard_optimizer: bool = False
    save_every: int = 1000
    validate_every: int = 1000
    log_every: int = 50

    @property
    def decay(self) -> float:
        """The weight decay, or the optimizer's default where none is given."""
        default = MUON_WEIGHT_DECAY if self.optimizer == "muon" else 0.0
        return default if self.weight_decay is None else self.weight_decay


@dataclass(frozen=True)
class Stage2Config:
    """Settings of stage 2, which encodes the images into codes.

    Attributes:
        batch_size: Number of images per batch, over all processes, 1 or more; a multiple of the number of processes.
        mixed_precision: Precision of the encoder: auto (bf16 where the CPU or GPU has instructions for it, else no), no
            (float32), bf16 or fp16 (CUDA only). The header of the codes records it.
        flipped_copies: Whether the codes of a horizontally flipped copy of each training image are also written: true
            or false.
        cropped_copies: Number of random crops of each training image whose codes are also written, from 0 to 1000. They
            cover the fractions of images.random_resized_crop, which must be set.
    """

    batch_size: int = 128
    mixed_precision: MixedPrecision = "auto"
    flipped_copies: bool = False
    cropped_copies: int = 0

    @property
    def copies(self) -> int:
        """Number of records that are written of each training image."""
        return (1 + self.flipped_copies) * (1 + self.cropped_copies)


@dataclass(frozen=True)
class PriorConfig:
    """The gated causal prior of one level.

    Attributes:
        hidden_channels: Number of channels of the vertical and the horizontal stack, 1 or more.
        residual_channels: Number of channels inside a gated residual block, 1 or more.
        layers: Number of gated residual blocks in each stack, 1 or more.
        kernel_size: Side of the causal convolution kernels in codes, an odd number, 3 or more. Each layer extends the
            receptive field by kernel_size // 2 codes upward and to either side.
        right_reach: Number of columns to the right that the prediction of a code sees in the row above, 0 or more;
            null: no limit. With a small number, codes of many rows are sampled together, at little cost in likelihood.
        attention_layers: Number of layers that are followed by causal self-attention over all earlier codes, from 0 to
            `layers`.
        attention_heads: Number of attention heads, 1 or more; a divisor of hidden_channels. Used only if
            attention_layers is above 0.
        dropout: Dropout probability after each residual block and in the attention, 0 or more and less than 1.
        output_layers: Number of residual 1x1 layers between the stacks and the logits, 0 or more.
        conditioning_layers: Number of residual blocks that process the codes of the coarser levels, 0 or more; 0 for
            the coarsest level.
        label_dropout: Fraction of training images whose label is hidden, 0 or more and less than 1. Guidance and label
            none need a value above 0.
        activation_checkpointing: Whether the activations of each layer are recomputed in the backward pass instead of
            being stored: true or false. Training then takes less memory and about a third more time.
        train: Training settings of this prior.
    """

    hidden_channels: int = 256
    residual_channels: int = 256
    layers: int = 20
    kernel_size: int = 5
    right_reach: int | None = 2
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
    """Settings of the evaluation of a finished run.

    Attributes:
        num_samples: Number of images to sample, 2 or more. They are compared with at most as many real images, and one
            of the classifiers is trained on them.
        temperature: Sampling temperature, above 0; below 1, samples are more probable and less varied.
        top_p: Cumulative probability of the most probable codes that are sampled from (nucleus sampling), above 0 and
            at most 1; null: all codes.
        guidance: Scale of classifier-free guidance, 0 or more; 1: no guidance. Other values need priors trained with
            label_dropout above 0.
        classifier: Architecture of the torchvision classifiers that are trained on real images, on reconstructions and
            on samples: resnet18, resnet34 or resnet50.
        classifier_size: Side of the square images that the classifiers read in pixels, from 32 to 16384, limited to the
            longer side of the images.
        classifier_steps: Number of optimizer steps of each classifier, 1 or more.
        batch_size: Number of images per optimizer step of a classifier, over all processes, 1 or more; a multiple of
            the number of processes. Elsewhere in the evaluation, the number of images per batch of each process.
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
    """The configuration of a run, for all stages.

    Attributes:
        run_dir: Path of the run directory, which every stage reads from and writes to.
        images: The images of the run and how they are preprocessed.
        autoencoder: The hierarchical VQ-VAE.
        stage1: Training settings of the autoencoder.
        stage2: Settings of stage 2, which encodes the images into codes.
        priors: The prior of each level, by the name of the level.
        evaluation: Settings of the evaluation of the finished run.
        seed: Seed of all random numbers of training and evaluation, an integer, 0 or more.
        trackers: List of experiment trackers to report to in addition to metrics.jsonl: tensorboard, wandb or both.
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


class RunConfig(Protocol):
    """What the preparation of a training needs of a configuration: the run directory and the trackers."""

    @property
    def run_dir(self) -> str: ...

    @property
    def trackers(self) -> Sequence[str]: ...


class LevelGrid(NamedTuple):
    """The grid of codes of one level."""

    name: str
    height: int
    width: int
    codebook_size: int


def level_grids(levels: list[LevelConfig], height_width: tuple[int, int]) -> list[LevelGrid]:
    """Return the grid of codes of each level for an image of `height_width` pixels, coarsest first."""
    height, width = height_width
    return [LevelGrid(x.name, height // x.stride, width // x.stride, x.codebook_size) for x in levels]


def compression_ratio(autoencoder: AutoencoderConfig, height_width: tuple[int, int]) -> float:
    """Return the size of an image's 24-bit pixels divided by the size of its codes, at log2 K bits per code."""
    height, width = height_width
    code_bits = sum(
        x.height * x.width * math.log2(x.codebook_size) for x in level_grids(autoencoder.levels, height_width)
    )
    return 24 * height * width / code_bits


def as_dict(config: Any) -> dict[str, Any]:
    """Convert a configuration to plain dictionaries, lists and values."""
    return dataclasses.asdict(config)
