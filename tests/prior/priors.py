"""Small priors for the tests in this folder, with random parameters so that every input affects the logits."""

from typing import Any

import torch

from vqvae2.config import LevelGrid, PriorConfig
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.prior import Prior

CLASSES = 3


def tiny_prior(
    grid: tuple[int, int] = (6, 6),
    codes: int = 5,
    coarser: tuple[int, ...] = (),
    classes: int = 0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Prior:
    """Return a small prior in eval mode.

    Args:
        grid: rows and columns of codes.
        codes: size of the codebook.
        coarser: how many times smaller each coarser level's grid is, coarsest first.
        classes: number of labels.
        dtype: dtype of the parameters.
        options: fields of PriorConfig.
    """
    height, width = grid
    shapes = [LevelGrid(f"coarse{x}", height // x, width // x, 4 + x) for x in coarser] + [
        LevelGrid("own", height, width, codes)
    ]
    defaults = {
        "hidden_channels": 8,
        "residual_channels": 6,
        "layers": 2,
        "kernel_size": 3,
        "attention_heads": 2,
        "dropout": 0.1,
    }
    prior = build_prior(PriorConfig(**{**defaults, **options}), shapes, "own", classes, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in prior.parameters():  # parameters initialized to zero would hide errors
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return prior.to(dtype).eval()


def some_codes(
    prior: Prior, batch: int, seed: int = 2
) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None, torch.Tensor | None]:
    """Return random codes of the prior's level, codes of the coarser levels, and labels.

    Coarser codes and labels are None if the prior does not use them. The first label is -1, that is, not given.
    """
    generator = torch.Generator().manual_seed(seed)
    own, *others = (
        torch.randint(shape.codebook_size, (batch, shape.height, shape.width), generator=generator)
        for shape in (prior.grid, *prior.coarser)
    )
    coarser = {shape.name: codes for shape, codes in zip(prior.coarser, others, strict=True)} or None
    labels = torch.randint(prior.num_classes, (batch,), generator=generator) if prior.num_classes else None
    if labels is not None:
        labels[0] = -1
    return own, coarser, labels
