"""The negative log-likelihood of codes under a prior."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from vqvae2.codes.loading import load_code_batches
from vqvae2.codes.store import CodeStore
from vqvae2.prior.prior import Prior
from vqvae2.run.precision import widest_float
from vqvae2.training.order import in_order
from vqvae2.training.window import share_of


def code_nll(model: nn.Module, prior: Prior, codes: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Negative log-likelihood of each code of the prior's level in nats, (B, H, W).

    Args:
        model: the prior, wrapped by the accelerator or not.
        prior: the prior, not wrapped.
        codes: codes (B, H, W) of the prior's level and of all coarser levels, by name.
        labels: (B,) int64, negative for images without a label.
    """
    own = codes[prior.grid.name]
    coarser = {grid.name: codes[grid.name] for grid in prior.coarser} or None
    logits = model(own, coarser, labels)
    return nll_of(logits, own)


def nll_of(logits: Tensor, codes: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each code (B, H, W) under logits (B, K, H, W), in float32 or float64."""
    flat = rearrange(logits, "b k h w -> (b h w) k")  # a view, and softmax is faster along the last dimension
    wide = flat.float() if flat.dtype != torch.float64 else flat
    return F.cross_entropy(wide, codes.flatten(), reduction="none").view(codes.shape)


def nats_per_code(
    prior: Prior, store: CodeStore, window: list[int], batch_size: int, accelerator: Accelerator
) -> float:
    """Mean negative log-likelihood of the codes of a set of images given their labels, in nats per code.

    The images are split over all processes.

    Args:
        prior: the prior in eval mode, not wrapped by the accelerator.
        store: the store that contains the codes.
        window: indices of the images.
        batch_size: images per process at a time.
        accelerator: provides autocast and reduction over processes.
    """
    wide = widest_float(accelerator.device)
    sums = torch.zeros(2, dtype=wide, device=accelerator.device)  # nats, number of codes
    for batch in load_code_batches(store, in_order(share_of(window, accelerator), batch_size)):
        codes = {name: x.to(accelerator.device, non_blocking=True) for name, x in batch.codes.items()}
        with accelerator.autocast():
            nll = code_nll(prior, prior, codes, batch.labels.to(accelerator.device))
        sums += torch.stack([nll.to(wide).sum(), sums.new_tensor(nll.numel())])
    nats, codes_seen = accelerator.reduce(sums).tolist()
    return nats / codes_seen
