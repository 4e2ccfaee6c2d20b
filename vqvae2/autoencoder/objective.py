"""The training objective of stage 1."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.autoencoder.codebooks import Codebooks
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.objective import Loss, Reduce
from vqvae2.training.optimiser import BETAS

CONTINUOUS_LEVEL_DROPOUT = 0.25  # before quantization starts


class AutoencoderObjective:
    """The objective of stage 1: reconstruction and commitment loss, and codebook updates by moving average or loss.

    Quantization starts at `start_step`. The features of an untrained network carry no information and change
    quickly, so codebooks initialized from them would soon no longer fit. Until then, the finer levels of a share
    CONTINUOUS_LEVEL_DROPOUT of the images are hidden from the decoders: without quantization, the finest level can
    carry all information, and the coarser levels would learn nothing. After `start_step`, the finer levels of a
    share `level_dropout` of the images are hidden. A trained autoencoder is quantized from the first step on.
    """

    betas = BETAS
    validated_by = None

    def __init__(self, autoencoder: Autoencoder, batch_size: int, total_steps: int, seed: int, trained: bool = False):
        """Set up the objective.

        Args:
            autoencoder: the model, already on its device.
            batch_size: images of the global batch.
            total_steps: training steps; quantization starts after at most half of them.
            seed: seed of the run.
            trained: whether the weights are those of a trained autoencoder, whose codebooks are kept.
        """
        self.module = autoencoder
        self.rate_factors = autoencoder.rate_factors()
        self.matrices = dict.fromkeys(self.rate_factors, 1)  # the weights of all convolutions
        self.start_step = 0 if trained else min(autoencoder.config.continuous_steps, total_steps // 2)
        self.started = False
        self.seed = seed
        self.codebooks = Codebooks(autoencoder, batch_size, seed, trained)

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
        """Number of levels of each image that the decoders receive: (B,), from 1 to all.

        Each image of the global batch receives fewer than all with probability `share`, unless there is only one level.
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
        if began >= 0:  # a changed total_steps must not move it
            self.start_step, self.started = began, True
