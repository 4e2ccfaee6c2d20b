"""Training throughput and time spent waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

MUCH_WAITING = 0.3  # share of the time between two log lines


class Clock:
    """Measures seconds spent on training steps since the last log line, and the part spent waiting for data."""

    def __init__(self, step: int):
        self.step = step
        self.began = time.monotonic()
        self.waited = 0.0
        self.has_warned = False

    def images_per_second(self, step: int, batch_size: int) -> dict[str, float]:
        """Metrics since the last call: seconds of training and images per second. Resets the clock."""
        seconds = time.monotonic() - self.began
        images = (step - self.step) * batch_size
        self.step, self.began, self.waited = step, time.monotonic(), 0.0
        return {"seconds": seconds, "images_per_second": images / max(seconds, 1e-9)}

    def slow_data(self) -> str | None:
        """A warning if too much of the time since the last log line was spent waiting for data; returned only once."""
        share = self.waited / max(time.monotonic() - self.began, 1e-9)
        if share < MUCH_WAITING or self.has_warned:
            return None
        self.has_warned = True
        return (
            f"warning: {share:.0%} of the time was spent waiting for data: "
            "increase images.workers, or move the data to a faster disk"
        )

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager for a block that waits for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager for a block whose time is not counted."""
        began = time.monotonic()
        yield
        self.began += time.monotonic() - began
