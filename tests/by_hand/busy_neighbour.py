"""Measure how a process that keeps one core busy slows training down, for several ways in which threads wait.

    python -m tests.by_hand.busy_neighbour

PyTorch's OpenMP threads wait for each other at the end of every operation, first spinning, then sleeping. Beside a busy
process a thread that waits may take the core that the thread it waits for needs. For each setting a small prior is
trained for some seconds, alone and beside an endless loop.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median

from vqvae2.run.command_line import parse_options, run

SETTINGS: dict[str, dict[str, str]] = {
    "as the pipelines set it": {},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (100, 300, 1000, 3000, 10_000, 100_000)},
    "GOMP_SPINCOUNT=300000": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
LOOP = "while True: pass"


@dataclass(frozen=True)
class Options:
    """Options of the measurement.

    Attributes:
        seconds: duration of each training run.
        rounds: number of runs of each setting; the median is printed.
        train: train in this process and print the steps per second, instead of measuring the settings.
    """

    seconds: float = 8.0
    rounds: int = 3
    train: bool = False


def train(seconds: float) -> float:
    """Train a small prior; returns the steps per second after the first ones."""
    import torch

    from vqvae2.config import LevelGrid, PriorConfig, TrainConfig
    from vqvae2.prior.artefact import build_prior

    config = PriorConfig(
        hidden_channels=64, residual_channels=64, layers=6, kernel_size=5, attention_layers=0, train=TrainConfig()
    )
    grid = LevelGrid("top", 12, 12, 128)
    prior = build_prior(config, [grid], "top", num_classes=0, seed=0)
    optimiser = torch.optim.Adam(prior.parameters(), fused=True)
    codes = torch.randint(grid.codebook_size, (16, 12, 12))
    steps, began = -3, 0.0  # the first three steps are not counted
    while steps <= 0 or time.monotonic() - began < seconds:
        began = time.monotonic() if steps == 0 else began
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.functional.cross_entropy(prior(codes).float(), codes).backward()
        optimiser.step()
        optimiser.zero_grad()
        steps += 1
    return steps / (time.monotonic() - began)


def measure(environment: dict[str, str], seconds: float) -> float:
    """Steps per second of a process with these environment variables."""
    command = [sys.executable, "-m", "tests.by_hand.busy_neighbour", "--train", "true", "--seconds", str(seconds)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    options = parse_options(Options, __doc__)
    if options.train:
        print(train(options.seconds))
        return
    rates: dict[tuple[str, bool], list[float]] = {}
    for _ in range(options.rounds):
        for busy in (False, True):
            neighbour = subprocess.Popen([sys.executable, "-c", LOOP]) if busy else None
            try:
                for name, environment in SETTINGS.items():
                    rates.setdefault((name, busy), []).append(measure(environment, options.seconds))
            finally:
                if neighbour:
                    neighbour.kill()
                    neighbour.wait()
    idle = median(rates["GOMP_SPINCOUNT=300000", False])
    for name in SETTINGS:
        alone, beside = (median(rates[name, busy]) for busy in (False, True))
        print(
            f"{name:26}  alone {alone:5.2f} steps/s ({alone / idle:4.0%})  beside {beside:5.2f} ({beside / idle:4.0%})"
        )


if __name__ == "__main__":
    run(main)
