"""The fields of the configuration of a comparison. Their descriptions are the --help texts of the flags."""

from dataclasses import dataclass, field
from typing import Literal

from vqvae2.config import EvaluationConfig, ImagesConfig, TrainConfig


@dataclass(frozen=True)
class MembersConfig:
    """Sizes and weights of the models of the family, shared by all models that have them.

    Attributes:
        hidden_channels: Number of channels of the convolutions of the encoders and decoders, 2 or more.
        residual_channels: Number of channels inside a residual block, 1 or more.
        residual_layers: Number of residual blocks in each encoder and each decoder, 0 or more.
        stride: Number of image pixels per position of the encoder's output along each side: a power of two, 2 or more;
            a divisor of the sides of the images.
        units: Number of units of the fully connected layer between the convolutions and the latents, 1 or more.
        latent_dim: Number of dimensions of a latent vector, 1 or more.
        beta: Weight of the KL divergence of beta_vae, 0 or more.
        conditional_prior: Whether the prior of cvae depends on the label: true or false.
        adversarial_weight: Weight of the adversarial loss of vae_gan, relative to that of the reconstruction in the
            features of the discriminator, 0 or more.
        delta: Smallest rate of delta_vae in nats per image, above 0.
        sequence_length: Number of latent vectors of delta_vae, each of `sequence_dim` dimensions, 2 or more.
        sequence_dim: Number of dimensions of each latent vector of delta_vae, 1 or more.
        group_rows: Number of rows of pixels in each group of oi_vae, 1 or more; a divisor of the height.
        sparsity: Amount by which oi_vae shortens the weights from each latent to each group at each step, relative to
            the longest step of the optimizer, 0 or more and below 1.
        causal_channels: Number of channels of the causal decoder of the models named pixelcnn, 1 or more.
        causal_layers: Number of gated layers of that causal decoder, 1 or more.
        causal_kernel_size: Side of the causal kernels in pixels, an odd number, 3 or more.
        codebook_size: Number of code vectors of each codebook, 2 or more.
        code_dim: Number of dimensions of a code vector, 1 or more.
        prior_channels: Number of channels of the priors of vqvae and vqvae2, 1 or more.
        prior_layers: Number of gated layers of the priors of vqvae and vqvae2, 1 or more.
        likelihood_samples: Number of samples of the importance-weighted bound, 1 or more.
    """

    hidden_channels: int = 64
    residual_channels: int = 32
    residual_layers: int = 1
    stride: int = 4
    units: int = 256
    latent_dim: int = 32
    beta: float = 4.0
    conditional_prior: bool = False
    adversarial_weight: float = 0.1
    delta: float = 4.0
    sequence_length: int = 16
    sequence_dim: int = 2
    group_rows: int = 4
    sparsity: float = 0.5
    causal_channels: int = 32
    causal_layers: int = 4
    causal_kernel_size: int = 5
    codebook_size: int = 64
    code_dim: int = 16
    prior_channels: int = 64
    prior_layers: int = 4
    likelihood_samples: int = 50


@dataclass(frozen=True)
class FamilyConfig:
    """The configuration of a comparison.

    Attributes:
        run_dir: Path of the directory that every model and the comparison are written to.
        images: The images and how they are preprocessed.
        binarise: Whether each pixel is drawn once, by `seed`, as black or white with its brightness as probability:
            true or false. Needs grayscale images.
        models: Names of the models to train and evaluate, separated by commas. The table also has the models that were
            finished before.
        members: Sizes and weights of the models.
        train: Training settings, the same for all models.
        evaluation: Settings of the classifiers, and the number of samples that they see.
        test_images: Number of held-out images that likelihoods are computed on, 2 or more.
        seed: Seed of all random numbers, an integer, 0 or more.
        trackers: List of experiment trackers to report to in addition to metrics.jsonl: tensorboard, wandb or both.
    """

    run_dir: str
    images: ImagesConfig
    models: str
    members: MembersConfig = field(default_factory=MembersConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    binarise: bool = False
    test_images: int = 1000
    seed: int = 0
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of the models to train and evaluate."""
        return [name.strip() for name in self.models.split(",") if name.strip()]
