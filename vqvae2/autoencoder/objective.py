"""What stage 1 minimises, and how it keeps the codebooks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.autoencoder.codebooks import Codebooks
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.objective import Loss, Reduce
from vqvae2.training.optimiser import BETAS

CONTINUOUS_LEVEL_DROPOUT = 0.25  # while nothing is quantised


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
        self.codebooks.start(([(part.images, part.batch_indices) for part in batch] for batch in batches), reduce)

    def loss(self, model: nn.Module, batch: Any, step: int) -> Loss:
        quantises = step >= self.start_step
        share = self.module.config.level_dropout if quantises else CONTINUOUS_LEVEL_DROPOUT
        shown = self._levels_shown(step, share, batch.batch_indices) if share > 0 else None
        reconstruction = model(batch.images, shown_levels=shown, quantises=quantises)
        losses = self.module.losses(batch.images, reconstruction)
        if quantises:
            self.codebooks.observe(reconstruction.quantised, batch.batch_indices, step - self.start_step)
        metrics = {name: value.detach() for name, value in losses._asdict().items() if name != "total"}
        return Loss(losses.total, metrics)

    def _levels_shown(self, step: int, share: float, batch_indices: Tensor) -> Tensor:
        """How many levels of each image reach the decoders: (B,), from 1 to all.

        It is fewer than all for this share of the global batch, unless there is one level only.
        """
        size, levels = self.codebooks.batch_size, len(self.module.names)
        generator = keyed_generator(self.seed, "level dropout", step)
        hides = torch.rand(size, generator=generator) < share
        fewer = torch.randint(1, max(2, levels), (size,), generator=generator)
        return torch.where(hides, fewer, levels).to(batch_indices.device)[batch_indices]

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
