"""Which images a figure is taken over, and how processes share them."""

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.training.order import epoch_order

WINDOW_IMAGES = 1024


def validation_window(num_images: int, at_most: int = WINDOW_IMAGES) -> list[int]:
    """At most `at_most` of the images, the same ones every time, drawn from all classes."""
    return epoch_order(num_images, seed=0, epoch=0)[:at_most]


def share_of(window: list[int], accelerator: Accelerator) -> list[int]:
    """This process's images of the window."""
    return window[accelerator.process_index :: accelerator.num_processes]


def gather_shares(mine: Tensor, total: int, accelerator: Accelerator) -> Tensor:
    """What every process computed of its `share_of` a window of `total` images, in the window's order, on each.

    Args:
        mine: (images of this process, ...).
        total: images of the window.
        accelerator: of the processes; what fills up the shorter shares is dropped.
    """
    longest = -(-total // accelerator.num_processes)
    padded = torch.cat([mine, mine.new_zeros(longest - len(mine), *mine.shape[1:])])
    shares = accelerator.gather(padded).unflatten(0, (accelerator.num_processes, longest))
    return shares.transpose(0, 1).flatten(0, 1)[:total]
