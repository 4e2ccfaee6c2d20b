"""Measuring several ways of doing one thing in turns, so that whatever else the machine does meets all of them."""

import platform
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

WARM_UP_CALLS = 2


def seconds_per_call(ways: dict[str, Callable[[], object]], device: torch.device, repetitions: int) -> dict[str, float]:
    """The seconds of the fastest call of each, called in turns `repetitions` times: others only lengthen a call."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        for _ in range(WARM_UP_CALLS):
            call()
    for _ in range(repetitions):
        for name, call in ways.items():
            _wait(device)
            began = time.perf_counter()
            call()
            _wait(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: min(values) for name, values in seconds.items()}


def update(loss: Tensor, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """The part of a training step that follows the loss, as the training loop does it."""
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that was held so far: of the GPU by PyTorch, else of the whole process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if platform.system() == "Darwin" else 2**10  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
