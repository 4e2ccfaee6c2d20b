"""The images that validation metrics are computed on, and how they are split over processes."""

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.training.order import epoch_order

WINDOW_IMAGES = 1024


def validation_window(num_images: int, at_most: int = WINDOW_IMAGES) -> list[int]:
    """Indices of at most `at_most` images: always the same random subset, so that it covers all classes."""
    return epoch_order(num_images, seed=0, epoch=0)[:at_most]


def share_of(window: list[int], accelerator: Accelerator) -> list[int]:
    """The indices of the window that this process handles."""
    return window[accelerator.process_index :: accelerator.num_processes]


def gather_shares(mine: Tensor, total: int, accelerator: Accelerator) -> Tensor:
    """Gather the results that each process computed for its `share_of` a window, in the order of the window.

    Args:
        mine: results of this process, (images of this process, ...).
        total: number of images of the window.
        accelerator: gathers over processes; the padding of shorter shares is removed.

    Returns:
        (total, ...), the same on every process.
    """
    longest = -(-total // accelerator.num_processes)
    padded = torch.cat([mine, mine.new_zeros(longest - len(mine), *mine.shape[1:])])
    shares = accelerator.gather(padded).unflatten(0, (accelerator.num_processes, longest))
    return shares.transpose(0, 1).flatten(0, 1)[:total]
