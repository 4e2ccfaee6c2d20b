"""Requests to stop a stage: it finishes its step, saves, and exits with code 75.

This module records the request. The training loop, code extraction and sample writing act on it between steps or
batches, and `command_line.run` sets the exit code.

A request is a SIGTERM, SIGINT or SIGUSR1, or the exit of the launcher. Launchers forward only few signals, so
without the latter their processes would continue to run after the launcher has ended.
"""

import atexit
import multiprocessing.util  # registers its own function with atexit; later ones are called first
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ONE_KEYSTROKE_SECONDS = 0.5  # Ctrl-C may arrive twice: from the terminal and from the launcher
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # environment variables that launchers set

Handler = Callable[[int, FrameType | None], object] | int | None  # as signal.signal returns it


class _Parent:
    process: int | None = None  # process id; None: `end_with_parent` has not been called


def end_with_parent() -> None:
    """Treat the exit of the current parent process as a request to stop. Call it before PyTorch is imported."""
    _Parent.process = os.getppid()


class Stop(BaseException):
    """A signal to stop outside `StopRequests`, as in a survey; its text is the signal. No `except Exception` has it."""


@contextmanager
def stop_at_signals() -> Iterator[None]:
    """Context manager in which SIGTERM and SIGUSR1 raise Stop where no StopRequests records them."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stop(signal.Signals(number).name)

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """Ignore the signals in a loader worker, which the terminal or Slurm sends to all processes; see `worker_init_fn`.

    The process that loads then ends its workers when it has saved, or when Python exits.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill loader workers that are left: multiprocessing would send them SIGTERM, and wait forever.

    PyTorch's handler of SIGCHLD would report each of them as a worker that failed.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class StopRequests:
    """Context manager that records requests to stop; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.interrupted_at: float | None = None
        self.former: dict[int, Handler] = {}

    def __enter__(self) -> "StopRequests":
        self.former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def reason(self) -> str | None:
        """Return the reason why this process should stop, or None."""
        if self.signal is not None:
            return signal.Signals(self.signal).name
        if _Parent.process not in (None, os.getppid()) and any(name in os.environ for name in LAUNCHED):
            return "the exit of the launcher"
        return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self.interrupted_at is None:
                self.interrupted_at = now
            elif now - self.interrupted_at > ONE_KEYSTROKE_SECONDS:
                raise KeyboardInterrupt
        self.signal = number
