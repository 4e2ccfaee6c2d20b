"""The worker of the demo: one request at a time, intermediate results, cancellation."""

import threading

import pytest

from tests.conftest import wait_until
from vqvae2.demo import worker as module
from vqvae2.demo.worker import CancelledError, Job, Worker
from vqvae2.errors import UserError


def test_what_a_request_shows_is_yielded_in_order() -> None:
    assert list(Worker().run("a", lambda job: [job.show(i) for i in range(3)])) == [0, 1, 2]


def test_an_exception_of_the_work_is_raised_after_what_it_showed() -> None:
    def work(job: Job) -> None:
        job.show("first")
        raise UserError("too large")

    results = Worker().run("a", work)
    assert next(results) == "first"
    with pytest.raises(UserError, match="too large"):
        next(results)


def test_requests_run_one_after_another() -> None:
    """The second request begins when the first one has ended, and both run in the same thread."""
    worker, events, go_on = Worker(), [], threading.Event()

    def work(name: str, job: Job) -> None:
        events.append((name, "begins", threading.get_ident()))
        job.show(name)
        assert go_on.wait(60)
        events.append((name, "ends", threading.get_ident()))

    first = worker.run("a", lambda job: work("first", job))
    assert next(first) == "first"
    others: list[object] = []
    thread = threading.Thread(target=lambda: others.extend(worker.run("b", lambda job: work("second", job))))
    thread.start()
    wait_until(lambda: "b" in worker.jobs, "the second request")
    assert [name for name, *_ in events] == ["first"]
    go_on.set()
    assert list(first) == [] and thread.join(60) is None
    assert [x[:2] for x in events] == [("first", "begins"), ("first", "ends"), ("second", "begins"), ("second", "ends")]
    assert len({thread for *_, thread in events}) == 1 and others == ["second"] and not worker.jobs


def endless(job: Job) -> None:
    job.show("begun")
    while True:
        job.check()


def test_cancel_ends_the_requests_of_one_visitor() -> None:
    """A running request ends at its next check; a waiting one never begins; those of others go on."""
    worker, begun = Worker(), []
    running = worker.run("a", endless)
    assert next(running) == "begun"
    waiting: list[object] = []
    threads = [
        threading.Thread(target=lambda: waiting.extend(worker.run("a", lambda job: begun.append("a")))),
        threading.Thread(target=lambda: waiting.extend(worker.run("b", lambda job: job.show("b")))),
    ]
    for thread, count in zip(threads, (2, 3), strict=True):
        thread.start()
        wait_until(lambda count=count: sum(map(len, worker.jobs.values())) == count, "the request")
    worker.cancel("a")
    assert list(running) == []
    for thread in threads:
        thread.join(60)
    assert waiting == ["b"] and not begun and not worker.jobs


def test_a_closed_iterator_cancels_its_request() -> None:
    """The request ends, so that the next one runs."""
    worker = Worker()
    running = worker.run("a", endless)
    assert next(running) == "begun"
    running.close()
    assert worker.call(lambda: "next") == "next" and not worker.jobs


def test_intermediate_results_take_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is made at once, the others after a pause that is long beside the time that making one takes."""
    now, made = [100.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def make(seconds: float) -> float:
        made.append(now[0])
        now[0] += seconds
        return now[0]

    job = Job()
    job.show_at_times(lambda: make(0.01))  # 100.00 to 100.01
    for now[0], seconds in ((100.02, 0.01), (100.25, 0.01), (100.3, 1.0), (102.0, 1.0), (111.0, 1.0), (111.4, 1.0)):
        job.show_at_times(lambda seconds=seconds: make(seconds))
    assert made == [100.0, 100.3, 111.4]
    job.cancelled.set()
    with pytest.raises(CancelledError):
        job.show_at_times(lambda: make(1.0))
    assert len(made) == 3
