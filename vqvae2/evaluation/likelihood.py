"""How likely a prior finds codes, and how likely a decoder finds pixels."""

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.codes.loading import load_code_batches
from vqvae2.codes.store import CodeStore
from vqvae2.evaluation.window import share_of
from vqvae2.images.order import in_order
from vqvae2.precision import widest_float
from vqvae2.prior.prior import Prior
from vqvae2.training.objectives import code_nll


def nats_per_code(
    prior: Prior, store: CodeStore, window: list[int], batch_size: int, accelerator: Accelerator
) -> float:
    """Mean negative log-likelihood of the codes of some images, given their labels.

    Every process takes its share of the images.

    Args:
        prior: in eval mode, not wrapped.
        store: of the codes.
        window: indices of the images.
        batch_size: images of one process at a time.
        accelerator: whose autocast is used.
    """
    wide = widest_float(accelerator.device)
    sums = torch.zeros(2, dtype=wide, device=accelerator.device)  # of nats, of codes
    for batch in load_code_batches(store, in_order(share_of(window, accelerator), batch_size)):
        codes = {name: x.to(accelerator.device, non_blocking=True) for name, x in batch.codes.items()}
        with accelerator.autocast():
            nll = code_nll(prior, prior, codes, batch.labels.to(accelerator.device))
        sums += torch.stack([nll.to(wide).sum(), sums.new_tensor(nll.numel())])
    nats, codes_seen = accelerator.reduce(sums).tolist()
    return nats / codes_seen


def pixel_nats(images: Tensor, means: Tensor, variance: float) -> Tensor:
    """-log p(x | z_q(x)) in nats of each image, (B,): a Gaussian discretised to the 256 values of a pixel.

    A value's probability is the Gaussian's mass within half a step of it; the lowest and the highest value take the
    tails as well, as in PixelCNN++ (Salimans et al. 2017, equation 2, there with a logistic distribution).

    Args:
        images: uint8 (B, C, H, W).
        means: the reconstructions, (B, C, H, W) in [-1, 1].
        variance: of all pixels, on the same scale.
    """
    scale = 127.5 * variance**0.5
    wide = widest_float(images.device)  # for the tails
    distance = images.to(wide) - (means.to(wide) + 1) * 127.5
    below = torch.where(images == 0, -torch.inf, (distance - 0.5) / scale)
    above = torch.where(images == 255, torch.inf, (distance + 0.5) / scale)
    # the same mass mirrored to the left, where the logarithm of the normal distribution is exact
    left, right = torch.where(distance > 0, -above, below), torch.where(distance > 0, -below, above)
    log_right = torch.special.log_ndtr(right)
    log_mass = log_right + torch.log(-torch.expm1(torch.special.log_ndtr(left) - log_right))
    return -log_mass.sum(dim=(1, 2, 3))
