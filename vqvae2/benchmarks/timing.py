"""Time several functions in alternation, so that other load on the machine affects all of them."""

import platform
import resource
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def seconds_per_call(
    ways: Mapping[str, Callable[[], object]],
    device: torch.device,
    repetitions: int,
    warm_up_calls: int = 2,
    statistic: Callable[[list[float]], float] = min,
) -> dict[str, float]:
    """Seconds of a call of each function, out of `repetitions` calls in alternation.

    `statistic` reduces the seconds of its calls. The minimum compares functions, because other load on the machine
    only makes calls slower; the median predicts how long many calls take.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        for _ in range(warm_up_calls):
            call()
    for _ in range(repetitions):
        for name, call in ways.items():
            _wait(device)
            began = time.perf_counter()
            call()
            _wait(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistic(values) for name, values in seconds.items()}


def update(loss: Tensor, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """The part of a training step after the loss: backward pass, gradient clipping and optimizer step."""
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: allocated by PyTorch on a GPU, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if platform.system() == "Darwin" else 2**10  # bytes per unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
