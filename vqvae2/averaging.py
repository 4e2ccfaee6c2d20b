"""Exponential moving averages."""


def average_decay(decay: float, step: int) -> float:
    """The decay of a moving average at `step`, rising to `decay` so that what it started from is soon forgotten."""
    return min(decay, (1 + step) / (10 + step))
