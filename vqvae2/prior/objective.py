"""The training objective of stages 3 and 4."""

from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.prior.likelihood import code_nll
from vqvae2.prior.prior import Prior
from vqvae2.training.objective import Loss, WeightsObjective
from vqvae2.training.optimiser import BETAS


class PriorObjective(WeightsObjective[Prior]):
    """The objective of stages 3 and 4: negative log-likelihood of a level's codes in nats per code."""

    betas = BETAS
    validated_by = "nats_per_code"

    def __init__(self, module: Prior, batch_size: int, seed: int):
        super().__init__(module, batch_size, seed)
        self.matrices = module.matrices()

    def loss(self, model: nn.Module, batch: Any, step: int) -> Loss:
        labels = self._drop_labels(batch.labels, batch.batch_indices, step)
        nll = code_nll(model, self.module, batch.codes, labels).mean()
        return Loss(nll, {"nats_per_code": nll.detach()})

    def _drop_labels(self, labels: Tensor, batch_indices: Tensor, step: int) -> Tensor:
        """Set each label to -1 with probability `label_dropout`, as a function of seed, step and batch index."""
        hidden = self.uniforms("label dropout", batch_indices, step) < self.module.config.label_dropout
        return torch.where(hidden, -1, labels)
