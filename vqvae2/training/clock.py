"""Where the time of training goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

MUCH_WAITING = 0.3  # of the time between two lines of the log


class Clock:
    """Seconds spent on training steps since the last line of the log, and those of them spent waiting for data."""

    def __init__(self, step: int):
        self.step = step
        self.began = time.monotonic()
        self.waited = 0.0
        self.has_warned = False

    def images_per_second(self, step: int, batch_size: int) -> dict[str, float]:
        """Metrics since the last call."""
        seconds = time.monotonic() - self.began
        images = (step - self.step) * batch_size
        self.step, self.began, self.waited = step, time.monotonic(), 0.0
        return {"seconds": seconds, "images_per_second": images / max(seconds, 1e-9)}

    def slow_data(self) -> str | None:
        """A warning where much of the time since the last line went by waiting for data; once."""
        share = self.waited / max(time.monotonic() - self.began, 1e-9)
        if share < MUCH_WAITING or self.has_warned:
            return None
        self.has_warned = True
        return (
            f"warning: {share:.0%} of the time went by waiting for data: "
            "raise images.workers, or keep the data on a faster disk"
        )

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that waits for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time does not count."""
        began = time.monotonic()
        yield
        self.began += time.monotonic() - began
