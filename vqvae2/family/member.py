"""The interface of the family's models: what training, evaluation and the page ask of each of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from vqvae2.config import TrainConfig
from vqvae2.family.config import MembersConfig
from vqvae2.images.loading import ImageBatch
from vqvae2.prior.prior import Prior
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.objective import Loss, Reduce

Observation = Literal["bernoulli", "gaussian"]


@dataclass(frozen=True)
class Setting:
    """What a model is built for.

    Attributes:
        config: sizes and weights.
        channels: channels of the images.
        height_width: size of the images in pixels.
        num_classes: number of classes; 0: the images have no labels.
        observation: distribution of the pixels given the decoder's output: bernoulli for images of black and white
            pixels, gaussian for all others.
        train: training settings.
        seed: seed of the run.
    """

    config: MembersConfig
    channels: int
    height_width: tuple[int, int]
    num_classes: int
    observation: Observation
    train: TrainConfig
    seed: int

    @property
    def dimensions(self) -> int:
        """Number of pixel values of an image, C * H * W."""
        return self.channels * self.height_width[0] * self.height_width[1]


class Bound(NamedTuple):
    """The two terms of a bound on -log p(x), in nats per image, (B,) each; their sum is the bound.

    Attributes:
        rate: KL divergence of the posterior from the prior, or -log p(codes).
        distortion: -log p(x | latents), for latents drawn from the posterior, or the codes; None: the model has no
            likelihood of pixels, and there is no bound.
    """

    rate: Tensor
    distortion: Tensor | None


class Member(nn.Module):
    """Base class of the models. The defaults are those of a model without a likelihood, latents and codes.

    Images are uint8 (B, C, H, W), labels int64 (B,), NO_LABEL (-1) for images without a label.

    Attributes:
        setting: what the model was built for.
        closed_form: whether `finish` alone fits the model, all of whose parameters are then buffers.
        conditional: whether the model depends on the label.
        start_step: training step before which `start` is called; None: never.
    """

    closed_form = False
    conditional = False

    def __init__(self, setting: Setting):
        super().__init__()
        self.setting = setting
        self.start_step: int | None = None

    # Training, as in vqvae2.training.objective.Objective.

    def forward(self, batch: ImageBatch, step: int) -> Loss:
        """The loss of one part of the global batch of a step, and metrics to log."""
        raise NotImplementedError

    def start(self, batches: Iterator[list[ImageBatch]], reduce: Reduce) -> None:
        """Initialize from data, such as codebooks; see Objective.start."""

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        """Update what the optimizer does not, such as codebooks; see Objective.end_step."""

    def state(self) -> dict[str, Tensor]:
        """Tensors to save in a checkpoint in addition to the state_dict."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""

    def finish(self, batches: Iterable[ImageBatch], reduce: Reduce) -> None:
        """Fit, in eval mode and without gradients, what is computed from all training images after the training.

        Args:
            batches: this process's share of the training images, each image once; lazy.
            reduce: sums a tensor over all processes.
        """

    def rate_factors(self) -> dict[nn.Parameter, float]:
        """Adam's learning rate multipliers, for the parameters whose multiplier is not 1."""
        return {}

    def matrices(self) -> dict[nn.Parameter, int]:
        """Weights of linear and convolution layers, which Muon updates if the configuration asks for it.

        Those of causal networks are as in the priors: the last layer, whose rows are the codes' own, is left to Adam.

        Returns:
            The number of matrices that the outputs of each are divided into.
        """
        priors = [x for x in self.modules() if isinstance(x, Prior)]
        by_adam = {id(x.to_logits) for x in priors}
        layers = [x for x in self.modules() if isinstance(x, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        matrices = dict.fromkeys([cast(nn.Parameter, x.weight) for x in layers if id(x) not in by_adam], 1)
        for prior in priors:
            matrices |= prior.matrices()
        return {weight: parts for weight, parts in matrices.items() if weight.requires_grad}

    def noise(self, purpose: str, batch: ImageBatch, step: int, *shape: int) -> Tensor:
        """Standard normal numbers (B, *shape), a function of seed, purpose, step and batch index only."""
        generator = keyed_generator(self.setting.seed, purpose, step)
        drawn = torch.randn(self.setting.train.batch_size, *shape, generator=generator)
        return drawn.to(batch.images.device)[batch.batch_indices]

    # Evaluation, in eval mode and without gradients.

    def reconstruct(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Reconstructions, uint8 (B, C, H, W): the mean of p(x | latents) for the posterior's mean, or the codes.

        A causal decoder has no such mean, and draws from p(x | latents). None: the model has no latents.
        """
        return None

    def sample(self, num: int, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw `num` images, uint8 (num, C, H, W); `labels` (num,) are used by conditional models only.

        Latents are drawn from the prior. The pixels are the means of p(x | latents), or drawn by a causal decoder.
        """
        raise NotImplementedError

    def bound(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Bound | None:
        """Rate and distortion of each image, from one draw of the latents; None: the model has neither."""
        return None

    def nll(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """The tightest upper bound on -log p(x) that the model computes, in nats, (B,); by default that of `bound`."""
        bound = self.bound(images, labels, generator)
        return None if bound is None or bound.distortion is None else bound.rate + bound.distortion

    def exchange_loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """Nats by which the distortion of each image grows with the latents of the image before it, (B,)."""
        return None

    def posterior_means(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Means of the latents given the images, (B, D); None: the model has no continuous latents."""
        return None

    def group_weights(self) -> Tensor | None:
        """Norms of the weights from each latent to each group of pixels, (G, D); None: the model has no groups."""
        return None

    def codes(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Codes (B, h, w) of the images by level; empty: the model has no codebook."""
        return {}

    def codebook_sizes(self) -> dict[str, int]:
        """Number of code vectors of each level."""
        return {}
