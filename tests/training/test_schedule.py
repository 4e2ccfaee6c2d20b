"""The learning rate as a function of the step."""

import math

import pytest

from vqvae2.config import TrainConfig
from vqvae2.training.schedule import learning_rate


def test_warm_up_rises_in_equal_steps_to_the_full_rate() -> None:
    """The rate increases linearly: it is above zero at the first update and full at the last one of the warm-up."""
    train = TrainConfig(learning_rate=0.4, warmup_steps=4, total_steps=100)
    assert [learning_rate(train, step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_cosine_falls_to_zero_at_the_last_step() -> None:
    """After the warm-up the rate is a half cosine, which is zero at total_steps and after it."""
    train = TrainConfig(learning_rate=2.0, warmup_steps=10, total_steps=110, schedule="cosine")
    assert [learning_rate(train, step) for step in (10, 60, 110, 500)] == pytest.approx([2, 1, 0, 0])
    assert learning_rate(train, 35) == pytest.approx(1 + math.cos(math.pi / 4))


def test_constant_stays() -> None:
    """The constant schedule keeps the full rate after the warm-up."""
    train = TrainConfig(learning_rate=2.0, warmup_steps=10, total_steps=110, schedule="constant")
    assert {learning_rate(train, step) for step in (9, 10, 60, 109, 500)} == {2.0}


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 10])
def test_rate_is_above_zero_at_every_step_of_a_short_run(warmup_steps: int, schedule: str) -> None:
    """The rate is positive at every step, also without warm-up or with a warm-up as long as the run or longer."""
    train = TrainConfig(learning_rate=1.0, warmup_steps=warmup_steps, total_steps=3, schedule=schedule)
    assert all(0 < learning_rate(train, step) <= 1 for step in range(3))
