"""One request at a time, in a thread of its own, that shows what it has so far and can be cancelled."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from threading import Event
from typing import Any

SHORTEST_PAUSE = 0.25  # seconds between two intermediate results
SHARE_OF_TIME = 0.1  # the largest share of the time that intermediate results may take


class CancelledError(Exception):
    """The request was cancelled."""


class Job:
    """A request. The work calls `check` often, and `show` when it has something to show."""

    def __init__(self) -> None:
        self.cancelled = Event()
        self.shown: SimpleQueue[Any] = SimpleQueue()
        self._next = 0.0

    def check(self) -> None:
        """Raise CancelledError if the request was cancelled."""
        if self.cancelled.is_set():
            raise CancelledError

    def show(self, result: Any) -> None:
        """Show an intermediate result."""
        self.check()
        self.shown.put(result)

    def show_at_times(self, make: Callable[[], Any]) -> None:
        """Make and show an intermediate result, unless the last one was a short time ago."""
        self.check()
        begin = time.monotonic()
        if begin >= self._next:
            self.show(make())
            end = time.monotonic()
            self._next = end + max(SHORTEST_PAUSE, (end - begin) / SHARE_OF_TIME)


class Worker:
    """Runs one request at a time.

    One thread does all the work, because PyTorch keeps a pool of threads for each thread that calls it.

    Attributes:
        jobs: requests that run or wait, by visitor.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "demo")
        self.jobs: dict[str, list[Job]] = {}

    def run(self, visitor: str, work: Callable[[Job], Any]) -> Iterator[Any]:
        """Run `work` and yield what it shows. The request is cancelled when the iterator is closed.

        Args:
            visitor: the visitor whose request it is, for `cancel`.
            work: called with the job when all earlier requests have ended. Its exceptions are raised here, except
                CancelledError, after which the iterator ends.
        """
        job, end = Job(), object()
        self.jobs.setdefault(visitor, []).append(job)
        future = self._thread.submit(_begin, work, job)
        future.add_done_callback(lambda _: job.shown.put(end))
        try:
            while (result := job.shown.get()) is not end:
                yield result
            with suppress(CancelledError):
                future.result()
        finally:
            job.cancelled.set()
            self._forget(visitor, job)

    def call(self, work: Callable[[], Any]) -> Any:
        """Run `work` when all earlier requests have ended, and return its result."""
        future: Future[Any] = self._thread.submit(work)
        return future.result()

    def cancel(self, visitor: str) -> None:
        """Cancel all requests of a visitor."""
        for job in self.jobs.get(visitor, []):
            job.cancelled.set()

    def _forget(self, visitor: str, job: Job) -> None:
        jobs = self.jobs.get(visitor, [])
        if job in jobs:
            jobs.remove(job)
        if not jobs:
            self.jobs.pop(visitor, None)


def _begin(work: Callable[[Job], Any], job: Job) -> None:
    job.check()
    work(job)
