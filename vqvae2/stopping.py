"""Signals that ask a stage to stop: it finishes its step, saves, and ends with exit code 75.

SIGTERM, SIGINT and SIGUSR1 count, and so does a launcher that is gone: it forwards few
signals, so that a process it started would otherwise work on unseen.
"""

import os
import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ONE_KEYSTROKE_SECONDS = 0.5  # a launcher forwards the SIGINT that the terminal has sent to everyone already
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # variables that launchers set
PARENT = os.getppid()  # as early as can be: imported before PyTorch


class StopRequests:
    """Notes requests to stop while it is entered; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.interrupted_at: float | None = None
        self.former: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        self.former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def reason(self) -> str | None:
        """Why this process should stop; None: it should not."""
        if self.signal is not None:
            return signal.Signals(self.signal).name
        if os.getppid() != PARENT and any(name in os.environ for name in LAUNCHED):
            return "the launcher's end"
        return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self.interrupted_at is None:
                self.interrupted_at = now
            elif now - self.interrupted_at > ONE_KEYSTROKE_SECONDS:
                raise KeyboardInterrupt
        self.signal = number
