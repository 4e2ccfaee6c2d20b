"""Small models of the family, batches of simple images, and their training without the loop."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat

import torch
from torch import Tensor

from vqvae2.config import TrainConfig
from vqvae2.family.config import MembersConfig
from vqvae2.family.member import Member, Observation, Setting
from vqvae2.family.members import MEMBERS
from vqvae2.family.training import MemberObjective
from vqvae2.images.loading import ImageBatch
from vqvae2.training.objective import optimiser_of
from vqvae2.training.optimiser import set_rate
from vqvae2.training.schedule import learning_rate

BATCH = 16
TRAIN = TrainConfig(
    batch_size=BATCH, total_steps=40, optimizer="muon", warmup_steps=0, learning_rate=3e-2, schedule="constant"
)
CONFIG = MembersConfig(
    hidden_channels=16,
    residual_channels=8,
    residual_layers=1,
    units=32,
    latent_dim=4,
    codebook_size=8,
    code_dim=4,
    prior_channels=8,
    prior_layers=2,
    likelihood_samples=3,
)


def setting(observation: Observation = "bernoulli", classes: int = 3, **options: object) -> Setting:
    """What small models are built for: 8x8 grayscale images; `options` are fields of MembersConfig."""
    return Setting(replace(CONFIG, **options), 1, (8, 8), classes, observation, TRAIN, seed=0)


def build(name: str, *arguments: object, **options: object) -> Member:
    torch.manual_seed(0)
    return MEMBERS[name](setting(*arguments, **options))


def stripes(observation: Observation = "bernoulli") -> ImageBatch:
    """A batch of images, each with one bright column and one bright row; the label is the column modulo 3."""
    images = torch.zeros(BATCH, 1, 8, 8, dtype=torch.uint8)
    for i in range(BATCH):
        images[i, 0, :, i % 8] = images[i, 0, i // 2] = 255 if observation == "bernoulli" else 200
    indices = torch.arange(BATCH)
    return ImageBatch(images, indices % 8 % 3, indices, indices)


def trained(member: Member, data: ImageBatch | Callable[[int], ImageBatch], steps: int = 40) -> list[float]:
    """Train as the loop does, and return the loss of each step; the model is then in eval mode.

    `data` is one batch for all steps, or a function from the step to its batch.
    """
    batch_of = data if callable(data) else lambda step: data
    batch = batch_of(0)
    objective = MemberObjective(member)
    optimiser = optimiser_of(objective, member.setting.train.optimizer)
    losses = []
    for step in range(steps):
        if step == objective.start_step:
            objective.start(endless(batch), same)
        set_rate(optimiser, learning_rate(member.setting.train, step))
        loss = objective.loss(member, batch_of(step), step)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        objective.end_step(step, torch.tensor(True), same)
        losses.append(loss.total.item())
    with torch.no_grad():
        member.eval().finish([batch], same)
    return losses


def endless(batch: ImageBatch) -> Iterator[list[ImageBatch]]:
    return repeat([batch])


def same(x: Tensor) -> Tensor:
    """The sum over the processes of a single process."""
    return x
