"""Parameter counts of the paper's priors, and activation checkpointing."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT
from tests.prior.priors import some_codes, tiny_prior
from vqvae2.config import level_grids
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.prior import Prior
from vqvae2.run.command_line import parse_config


@pytest.mark.parametrize(
    ("name", "level", "classes", "millions"),
    [
        ("imagenet256", "top", 1000, 1252.4),
        ("imagenet256", "bottom", 1000, 624.9),
        ("ffhq1024", "top", 0, 1126.0),
        ("ffhq1024", "middle", 0, 563.1),
        ("ffhq1024", "bottom", 0, 300.6),
    ],
)
def test_sizes_that_the_readme_states(name: str, level: str, classes: int, millions: float) -> None:
    """Parameter counts of the paper's priors; they are built on the meta device to avoid allocating memory."""
    config, _ = parse_config(["--config", str(ROOT / "configs" / f"{name}.yaml")])
    shapes = level_grids(config.autoencoder.levels, config.images.height_width)
    with torch.device("meta"):
        prior = build_prior(config.priors[level], shapes, level, classes, seed=0)
    assert round(sum(p.numel() for p in prior.parameters()) / 1e6, 1) == millions


def training_step(prior: Prior) -> tuple[dict[str, torch.Tensor], int]:
    """Return the gradients of all parameters and the bytes of activations saved for the backward pass."""
    codes, coarser, labels = some_codes(prior, batch=8)
    kept: list[int] = []
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.nbytes), x)[1], lambda x: x):
        F.cross_entropy(prior(codes, coarser, labels), codes).backward()
    return {name: p.grad for name, p in prior.named_parameters()}, sum(kept)


@pytest.mark.parametrize("options", [{"attention_layers": 2}, {"coarser": (2,), "classes": 3}], ids=str)
def test_activation_checkpointing_keeps_less_and_changes_nothing(options: dict[str, Any]) -> None:
    """Activation checkpointing saves less than half of the activations and gives equal gradients, with dropout."""
    options = {"layers": 6, "dropout": 0.3, **options}
    gradients, kept = training_step(tiny_prior(**options).train())
    again, kept_again = training_step(tiny_prior(**options, activation_checkpointing=True).train())
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)
    assert any(g.abs().max() > 0 for g in gradients.values())
    assert kept_again < kept / 2
