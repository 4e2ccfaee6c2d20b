"""Schedules, as pure functions of the step."""

import math

from vqvae2.config import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """Learning rate of update `step`, counted from 0: linear warm-up, then constant or cosine decay to 0."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.learning_rate
    progress = (step - train.warmup_steps) / max(1, train.total_steps - train.warmup_steps)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
