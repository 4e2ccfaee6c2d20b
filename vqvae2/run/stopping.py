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


class _Parent:
    process: int | None = None  # None: nobody has asked to be ended with it


def end_with_parent() -> None:
    """Take the end of this process's present parent for a request to stop; called before PyTorch is imported."""
    _Parent.process = os.getppid()


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
        if _Parent.process not in (None, os.getppid()) and any(name in os.environ for name in LAUNCHED):
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
