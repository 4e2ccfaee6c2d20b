"""How likely a prior finds held-out codes."""

import torch
from accelerate import Accelerator

from vqvae2.codes.loading import load_code_batches
from vqvae2.codes.store import CodeStore
from vqvae2.evaluation.window import share_of, validation_window
from vqvae2.images.order import in_order
from vqvae2.prior.prior import Prior
from vqvae2.training.objectives import code_nll


def nats_per_code(prior: Prior, store: CodeStore, batch_size: int, accelerator: Accelerator) -> float:
    """Mean negative log-likelihood of the codes of `validation_window`, given their labels.

    Every process takes its share of the images.

    Args:
        prior: in eval mode, not wrapped.
        store: of the codes.
        batch_size: images of one process at a time.
        accelerator: whose autocast is used.
    """
    mine = share_of(validation_window(len(store)), accelerator)
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # of nats, of codes
    for batch in load_code_batches(store, in_order(mine, batch_size)):
        codes = {name: x.to(accelerator.device, non_blocking=True) for name, x in batch.codes.items()}
        with accelerator.autocast():
            nll = code_nll(prior, prior, codes, batch.labels.to(accelerator.device))
        sums += torch.stack([nll.double().sum(), torch.tensor(nll.numel(), dtype=torch.float64, device=nll.device)])
    nats, codes_seen = accelerator.reduce(sums).tolist()
    return nats / codes_seen
