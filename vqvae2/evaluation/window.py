"""Which held-out images a validation during training looks at."""

from accelerate import Accelerator

from vqvae2.images.order import epoch_order

WINDOW_IMAGES = 1024


def validation_window(num_images: int) -> list[int]:
    """At most WINDOW_IMAGES of the images, the same ones at every validation, drawn from all classes."""
    return epoch_order(num_images, seed=0, epoch=0)[:WINDOW_IMAGES]


def share_of(window: list[int], accelerator: Accelerator) -> list[int]:
    """This process's images of the window."""
    return window[accelerator.process_index :: accelerator.num_processes]
