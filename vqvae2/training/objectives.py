"""What each stage trains: a module, its loss on a batch, and what is done once a step."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.autoencoder.codebooks import Codebooks, Reduce
from vqvae2.prior.prior import Prior
from vqvae2.seeding import keyed_generator
from vqvae2.training.optimiser import BETAS, DEFAULT_BETAS

CONTINUOUS_LEVEL_DROPOUT = 0.25  # while nothing is quantised


class Loss(NamedTuple):
    """The loss to be minimised, with its graph, and named figures to be logged, without."""

    total: Tensor
    figures: dict[str, Tensor]


class Objective(Protocol):
    """What the training loop knows of a stage. Batches are NamedTuples of tensors, on the device."""

    module: nn.Module
    rate_factors: dict[nn.Parameter, float]
    betas: tuple[float, float]
    start_step: int | None

    def start(self, batches: Iterator[list[Any]], reduce: Reduce) -> None:
        """Before the step `start_step`, unless that is None: set what starts from data.

        `batches` are this process's parts of global batches.
        """

    def loss(self, model: nn.Module, batch: Any, step: int) -> Loss:
        """The loss on one part of a batch; `model` is `module`, wrapped for several processes."""

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        """After the optimiser's update; `applied` (bool scalar on the device) is false where it was left out."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold besides the module and the optimiser."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up `state` again."""


class AutoencoderObjective:
    """Stage 1: reconstruction and commitment, codebooks by moving average or by the codebook loss.

    In the first steps nothing is quantised: the features of a new network say nothing
    yet, and codebooks that start from them are left behind by the first updates. Of some
    images the finer levels are hidden meanwhile: as long as nothing is quantised the
    finest level can carry everything, and the coarse ones would learn nothing. Later they
    are hidden of a share `level_dropout` of the images.
    """

    betas = BETAS

    def __init__(self, autoencoder: Autoencoder, batch_size: int, total_steps: int, seed: int):
        """`autoencoder`: on its device. `batch_size`: of the global batch."""
        self.module = autoencoder
        self.rate_factors = autoencoder.rate_factors()
        self.start_step = min(autoencoder.config.continuous_steps, total_steps // 2)
        self.started = False
        self.seed = seed
        self.codebooks = Codebooks(autoencoder, batch_size, seed)

    def start(self, batches: Iterator[list[Any]], reduce: Reduce) -> None:
        self.started = True
        self.codebooks.start(([(part.images, part.positions) for part in batch] for batch in batches), reduce)

    def loss(self, model: nn.Module, batch: Any, step: int) -> Loss:
        quantises = step >= self.start_step
        share = self.module.config.level_dropout if quantises else CONTINUOUS_LEVEL_DROPOUT
        shown = self._draw_levels(step, share).to(batch.positions.device)[batch.positions] if share > 0 else None
        reconstruction = model(batch.images, shown_levels=shown, quantises=quantises)
        losses = self.module.losses(batch.images, reconstruction)
        if quantises:
            self.codebooks.observe(reconstruction.quantised, batch.positions, step - self.start_step)
        figures = {name: value.detach() for name, value in losses._asdict().items() if name != "total"}
        return Loss(losses.total, figures)

    def _draw_levels(self, step: int, share: float) -> Tensor:
        """How many levels of each image of the global batch reach the decoders: (batch size,), from 1 to all.

        Of this share of the images it is fewer than all, unless there is one level only.
        """
        size, levels = self.codebooks.batch_size, len(self.module.names)
        generator = keyed_generator(self.seed, "level dropout", step)
        hides = torch.rand(size, generator=generator) < share
        return torch.where(hides, torch.randint(1, max(2, levels), (size,), generator=generator), levels)

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        if step >= self.start_step:
            self.codebooks.update(step - self.start_step, applied, reduce)

    def state(self) -> dict[str, Tensor]:
        return {**self.codebooks.state(), "start_step": torch.tensor(self.start_step if self.started else -1)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.codebooks.load_state(state)
        began = int(state["start_step"])
        if began >= 0:  # another number of steps in all would move it
            self.start_step, self.started = began, True


class WeightsObjective:
    """What all objectives share that train a module's weights at one rate, and nothing else."""

    betas = DEFAULT_BETAS

    def __init__(self, module: nn.Module, batch_size: int, seed: int):
        """`batch_size`: of the global batch."""
        self.module = module
        self.rate_factors: dict[nn.Parameter, float] = {}
        self.start_step = None
        self.batch_size = batch_size
        self.seed = seed

    def start(self, batches: Iterator[list[Any]], reduce: Reduce) -> None:
        """Nothing starts from data."""

    def end_step(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        """Nothing moves but the weights."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """There is none."""

    def uniforms(self, purpose: str, positions: Tensor, step: int) -> Tensor:
        """A number in [0, 1) for each place in the global batch, by (seed, purpose, step, place) alone."""
        drawn = torch.rand(self.batch_size, generator=keyed_generator(self.seed, purpose, step))
        return drawn.to(positions.device)[positions]


class PriorObjective(WeightsObjective):
    """Stages 3 and 4: the negative log-likelihood of a level's codes, in nats per code."""

    betas = BETAS

    def loss(self, model: nn.Module, batch: Any, step: int) -> Loss:
        labels = self._drop_labels(batch.labels, batch.positions, step)
        nll = code_nll(model, self.module, batch.codes, labels).mean()
        return Loss(nll, {"nats_per_code": nll.detach()})

    def _drop_labels(self, labels: Tensor, positions: Tensor, step: int) -> Tensor:
        """Hide a share of the labels, by each image's place in the global batch."""
        hidden = self.uniforms("label dropout", positions, step) < self.module.config.label_dropout
        return torch.where(hidden, -1, labels)


def code_nll(model: nn.Module, prior: Prior, codes: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of the codes of `prior`'s level, (B, H, W); `model`: it, wrapped or not."""
    own = codes[prior.shape.name]
    coarser = {shape.name: codes[shape.name] for shape in prior.coarser} or None
    logits = model(own, coarser, labels)
    return F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, own, reduction="none")
