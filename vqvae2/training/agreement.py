"""Agreement of several processes on whether to stop, often enough for a short notice and seldom enough to cost nothing.

A check waits for all processes and for the device. Process 0 measures how long steps take, chooses after how many steps
the next check is due, and tells the others: processes that chose for themselves would wait for one another forever.
"""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator

from vqvae2.run.stopping import StopRequests

AGREE_SECONDS = 2.0  # between two checks, or one step if it is longer
MOST_STEPS = 20  # between two checks, so that steps of 20 ms that suddenly take 1 s leave most of a notice of 90 s


class Agreement:
    """Decides after each step whether all processes stop."""

    def __init__(
        self,
        requests: StopRequests,
        accelerator: Accelerator,
        first_step: int,
        now: Callable[[], float] = time.monotonic,
    ):
        self.requests = requests
        self.accelerator = accelerator
        self.now = now
        self.checked = (first_step, now())
        self.next_step = first_step + 1

    def reason(self, step: int, due: bool = False) -> str | None:
        """Why all processes stop after this step; None: they continue. All processes call it after each step.

        Args:
            step: the step.
            due: whether to check now even if it is not time for it.
        """
        if self.accelerator.num_processes == 1:
            return self.requests.reason()
        if step < self.next_step and not due:
            return None
        reason = self.requests.reason()
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)  # or the time of the last steps would be that of launching
        former, began = self.checked
        steps = steps_to_next_check(self.now() - began, step - former) if self.accelerator.is_main_process else 0
        mine = torch.tensor([float(reason is not None), float(steps)], device=self.accelerator.device)
        wanted, chosen = self.accelerator.reduce(mine).tolist()  # only process 0 adds a number of steps
        self.checked = (step, self.now())
        self.next_step = step + int(chosen)
        return (reason or "another process") if wanted > 0 else None


def steps_to_next_check(seconds: float, steps: int) -> int:
    """Number of steps until the next check, given that the last `steps` steps took `seconds`."""
    return max(1, min(MOST_STEPS, int(AGREE_SECONDS * steps / max(seconds, 1e-9))))
