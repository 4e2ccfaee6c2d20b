"""The training stages of a configuration: the model, objective and batches of each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.artefact import build_autoencoder
from vqvae2.autoencoder.objective import AutoencoderObjective
from vqvae2.codes.loading import CodeBatch
from vqvae2.config import Config, TrainConfig, level_grids, local_batch_size
from vqvae2.images.loading import ImageBatch
from vqvae2.planning.cost import TrainingCost, training_cost
from vqvae2.planning.fake import without_memory
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.objective import PriorObjective
from vqvae2.training.objective import Objective


class Stage(NamedTuple):
    """A stage that trains a model.

    Attributes:
        name: name for the table.
        key: section of its settings.
        train: its settings.
        checkpointing: whether activation checkpointing is on; None: the model has none.
        build: builds the module; the argument turns activation checkpointing on.
        objective: makes the objective of a module.
        batch: makes a batch of a number of images.
    """

    name: str
    key: str
    train: TrainConfig
    checkpointing: bool | None
    build: Callable[[bool], Any]
    objective: Callable[[Any], Objective]
    batch: Callable[[int], Any]

    def local_batch(self, processes: int) -> int:
        """Images of one process in one pass."""
        accumulation = self.train.gradient_accumulation_steps
        return local_batch_size(f"{self.key}.batch_size", self.train.batch_size, processes, accumulation)

    def cost(
        self, local_batch: int, accumulation: int, checkpointing: bool, precision: str, processes: int = 1
    ) -> TrainingCost:
        """The cost of a step of one of several processes, without sharding."""
        module: nn.Module = without_memory(lambda: self.build(checkpointing))
        train = replace(self.train, gradient_accumulation_steps=accumulation)
        return training_cost(module, self.objective, lambda: self.batch(local_batch), train, precision, processes)


def random_images(config: Config, count: int) -> Tensor:
    """Random uint8 images (count, C, H, W)."""
    return torch.randint(256, (count, config.images.channels, *config.images.height_width), dtype=torch.uint8)


def training_stages(config: Config, num_classes: int) -> list[Stage]:
    """Stage 1 and the prior of each level, coarsest first."""
    return [_autoencoder_stage(config), *(_prior_stage(config, x.name, num_classes) for x in config.autoencoder.levels)]


def _autoencoder_stage(config: Config) -> Stage:
    train = config.stage1

    def batch(count: int) -> ImageBatch:
        indices = torch.arange(count)
        return ImageBatch(random_images(config, count), torch.zeros_like(indices), indices, indices)

    return Stage(
        name="stage 1",
        key="stage1",
        train=train,
        checkpointing=None,
        build=lambda _: build_autoencoder(config.autoencoder, config.images.channels, config.seed),
        objective=lambda module: AutoencoderObjective(module, train.batch_size, train.total_steps, config.seed),
        batch=batch,
    )


def _prior_stage(config: Config, level: str, num_classes: int) -> Stage:
    prior = config.priors[level]
    grids = level_grids(config.autoencoder.levels, config.images.height_width)
    read = grids[: [x.name for x in grids].index(level) + 1]

    def batch(count: int) -> CodeBatch:
        indices = torch.arange(count)
        codes = {x.name: torch.randint(x.codebook_size, (count, x.height, x.width)) for x in read}
        labels = indices % num_classes if num_classes else torch.full_like(indices, -1)
        return CodeBatch(codes, labels, indices)

    return Stage(
        name=f"prior {level}",
        key=f"priors.{level}.train",
        train=prior.train,
        checkpointing=prior.activation_checkpointing,
        build=lambda checkpointing: build_prior(
            replace(prior, activation_checkpointing=checkpointing), grids, level, num_classes, config.seed
        ),
        objective=lambda module: PriorObjective(module, prior.train.batch_size, config.seed),
        batch=batch,
    )
