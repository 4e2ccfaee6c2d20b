"""When several processes agree to stop: soon where steps are slow, seldom where they are fast, and all together."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, repeat
from types import SimpleNamespace

import pytest
import torch

from vqvae2.training.agreement import AGREE_SECONDS, MOST_STEPS, Agreement, steps_to_next_check


@pytest.mark.parametrize("seconds", [1e-6, 0.01, 0.3, 1.9, 2.1, 20.0])
def test_checks_are_as_far_apart_as_steps_are_fast(seconds: float) -> None:
    """The next check is at most AGREE_SECONDS or one step away, and not much sooner, but for very fast steps."""
    steps = steps_to_next_check(7 * seconds, 7)
    assert 1 <= steps <= MOST_STEPS
    assert steps * seconds <= max(AGREE_SECONDS, seconds) * 1.001
    assert steps == MOST_STEPS or (steps + 1) * seconds > AGREE_SECONDS


class Sum:
    """Stands in for the sum over two processes, which are threads here; each waits for the other."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=10)
        self.values: list[torch.Tensor] = [torch.zeros(2)] * 2

    def of(self, process: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def reduce(mine: torch.Tensor) -> torch.Tensor:
            self.values[process] = mine
            self.barrier.wait()
            total = self.values[0] + self.values[1]
            self.barrier.wait()
            return total

        return reduce


def ticks(seconds: float) -> Iterator[float]:
    return accumulate(repeat(seconds), initial=0.0)


@pytest.mark.parametrize("signaled", [0, 1])
def test_processes_with_different_clocks_stop_after_the_same_step(signaled: int) -> None:
    """Process 0 measures 0.3 s between checks and process 1 measures 0.02 s; a signal to either stops both together."""
    total = Sum()

    def train(process: int) -> tuple[int, str | None, list[int]]:
        clock = ticks((0.3, 0.02)[process])
        requests = SimpleNamespace(reason=lambda: "SIGUSR1" if process == signaled and step >= 30 else None)
        accelerator = SimpleNamespace(
            num_processes=2, is_main_process=process == 0, device=torch.device("cpu"), reduce=total.of(process)
        )
        agreement = Agreement(requests, accelerator, 0, lambda: next(clock))
        checked = []
        for step in range(1, 1000):
            checked += [step] * (step == agreement.next_step)
            if reason := agreement.reason(step):
                return step, reason, checked
        raise AssertionError("not stopped")

    with ThreadPoolExecutor(2) as pool:
        (step, reason, checked), (step1, reason1, checked1) = pool.map(train, range(2))
    assert step == step1 == checked[-1] and checked == checked1 and checked[0] == 1
    assert (reason, reason1)[signaled] == "SIGUSR1" and (reason1, reason)[signaled] == "another process"
