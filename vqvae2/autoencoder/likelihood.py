"""The likelihood of pixels given their codes: log p(x | z_q(x)) for a Gaussian around the reconstruction."""

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.images.convert import to_float
from vqvae2.images.image_sets import ImageSet
from vqvae2.images.loading import load_batches
from vqvae2.run.precision import widest_float
from vqvae2.training.order import in_order
from vqvae2.training.window import share_of, validation_window

VARIANCE_IMAGES = 1024  # training images that the variance is estimated from
SMALLEST_VARIANCE = 1e-8


@torch.no_grad()
def pixel_variance(
    autoencoder: Autoencoder, images: ImageSet, batch_size: int, workers: int, accelerator: Accelerator
) -> float:
    """Mean squared error of reconstructions, not rounded to 8 bits, of pixels in [-1, 1]: the Gaussian's variance.

    Args:
        autoencoder: the model in eval mode, not wrapped by the accelerator.
        images: the training images; at most VARIANCE_IMAGES of them are used, the same random ones each time.
        batch_size: images per process at a time.
        workers: processes that load images.
        accelerator: provides autocast and reduction over processes.
    """
    window = validation_window(len(images), VARIANCE_IMAGES)
    wide = widest_float(accelerator.device)
    sums = torch.zeros(2, dtype=wide, device=accelerator.device)  # mean squared errors, images
    for batch in load_batches(images, in_order(share_of(window, accelerator), batch_size), workers=min(workers, 2)):
        originals = batch.images.to(accelerator.device, non_blocking=True)
        with accelerator.autocast():
            means = autoencoder(originals).images
        errors = (to_float(originals) - means.float()).square().mean(dim=(1, 2, 3)).to(wide)  # (B,)
        sums += torch.stack([errors.sum(), sums.new_tensor(len(originals))])
    squared, count = accelerator.reduce(sums).tolist()
    return max(squared / count, SMALLEST_VARIANCE)


def pixel_nats(images: Tensor, means: Tensor, variance: float) -> Tensor:
    """-log p(x | z_q(x)) of each image in nats, (B,), for a Gaussian discretized to the 256 pixel values.

    The probability of a value is the mass of the Gaussian within half a step of it. The lowest and the highest value
    also include the tails, as in PixelCNN++ (Salimans et al. 2017, equation 2, which uses a logistic distribution).

    Args:
        images: uint8 (B, C, H, W).
        means: the reconstructions, (B, C, H, W) in [-1, 1].
        variance: variance of the Gaussian, on the same scale as `means`.
    """
    scale = 127.5 * variance**0.5
    wide = widest_float(images.device)  # precision for the tails
    distance = images.to(wide) - (means.to(wide) + 1) * 127.5
    below = torch.where(images == 0, -torch.inf, (distance - 0.5) / scale)
    above = torch.where(images == 255, torch.inf, (distance + 0.5) / scale)
    # Intervals right of the mean are mirrored to the left, where log_ndtr is accurate; their mass is the same.
    left, right = torch.where(distance > 0, -above, below), torch.where(distance > 0, -below, above)
    log_right = torch.special.log_ndtr(right)
    log_mass = log_right + torch.log(-torch.expm1(torch.special.log_ndtr(left) - log_right))
    return -log_mass.sum(dim=(1, 2, 3))
