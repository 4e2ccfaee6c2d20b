"""Sizes of the paper's priors, and training with activations computed twice."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT
from tests.prior.priors import some_codes, tiny_prior
from vqvae2.command_line import parse_config
from vqvae2.config import PriorConfig, level_shapes
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.prior import Prior


def weights_of(config: PriorConfig, grid: tuple[int, int], coarser: int, doublings: int, classes: int) -> int:
    """Number of weights of a prior with 512 codes, written out from the equations of each part.

    Args:
        config: of the prior.
        grid: rows and columns of codes.
        coarser: number of coarser levels.
        doublings: how often a map is doubled in size on its way from the coarsest level to the grid.
        classes: number of labels.
    """
    c, r, k, codes = config.hidden_channels, config.residual_channels, config.kernel_size, 512
    norm = 2 * c

    def layer(rows: int, norms: int, to_vertical: bool) -> int:
        vertical = rows * k * c * 2 * r + 2 * r + to_vertical * r * c
        horizontal = rows * c * 2 * r + 2 * r + r * c
        between = 2 * r * 2 * r + 2 * r
        condition = c * 4 * r if coarser or classes else 0
        return vertical + horizontal + between + condition + norms * norm

    first, middle, last = layer(k // 2, 0, True), layer(k // 2 + 1, 2, True), layer(k // 2 + 1, 2, False)
    attention = norm + (c * c + c) + (2 * c * 2 * c + 2 * c) + (c * c + c) + 2 * c
    output = norm + (c * r + r) + (r * c + c)
    conditioning = config.conditioning_layers * ((9 * c * r + r) + (r * c + c)) + norm if coarser else 0
    return (
        codes * c
        + sum(grid) * c
        + (classes + 1 if classes else 0) * c
        + coarser * codes * c
        + doublings * (c * 4 * c + 4 * c)
        + conditioning
        + first
        + (config.layers - 2) * middle
        + last
        + config.attention_layers * attention
        + config.output_layers * output
        + norm
        + (c * codes + codes)
    )


@pytest.mark.parametrize(
    ("name", "level", "classes", "coarser", "millions"),
    [
        ("imagenet256", "top", 1000, 0, 1252.4),
        ("imagenet256", "bottom", 1000, 1, 624.9),
        ("ffhq1024", "top", 0, 0, 1126.0),
        ("ffhq1024", "middle", 0, 1, 563.1),
        ("ffhq1024", "bottom", 0, 2, 300.6),
    ],
)
def test_weights_of_the_papers_priors(name: str, level: str, classes: int, coarser: int, millions: float) -> None:
    """On the meta device, so without their memory."""
    config, _ = parse_config(["--config", str(ROOT / "configs" / f"{name}.yaml")])
    shapes = level_shapes(config.autoencoder.levels, config.images.height_width)
    with torch.device("meta"):
        prior = build_prior(config.priors[level], shapes, level, classes, seed=0)
    grid = (prior.shape.height, prior.shape.width)
    count = sum(p.numel() for p in prior.parameters())
    assert count == weights_of(config.priors[level], grid, coarser, doublings=coarser, classes=classes)
    assert round(count / 1e6, 1) == millions


def training_step(prior: Prior) -> tuple[dict[str, torch.Tensor], int]:
    """The gradient of each weight, and the bytes of activations that are kept for it."""
    codes, coarser, labels = some_codes(prior, batch=8)
    kept: list[int] = []
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.nbytes), x)[1], lambda x: x):
        F.cross_entropy(prior(codes, coarser, labels), codes).backward()
    return {name: p.grad for name, p in prior.named_parameters()}, sum(kept)


@pytest.mark.parametrize("options", [{"attention_layers": 2}, {"coarser": (2,), "classes": 3}], ids=str)
def test_activation_checkpointing_keeps_less_and_changes_nothing(options: dict[str, Any]) -> None:
    """The same gradients, with dropout, from less than half of what is kept otherwise."""
    options = {"layers": 6, "dropout": 0.3, **options}
    gradients, kept = training_step(tiny_prior(**options).train())
    again, kept_again = training_step(tiny_prior(**options, activation_checkpointing=True).train())
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)
    assert any(g.abs().max() > 0 for g in gradients.values())
    assert kept_again < kept / 2
