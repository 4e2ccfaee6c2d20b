"""Parameter counts of the paper's priors, activation checkpointing, initial weights, and matrices for Muon."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT
from tests.prior.priors import some_codes, tiny_prior
from vqvae2.autoencoder.artefact import load_autoencoder
from vqvae2.config import LevelGrid, PriorConfig, level_grids
from vqvae2.prior.artefact import build_prior, load_prior
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


def test_outputs_with_two_meanings_are_two_matrices() -> None:
    """Values and gates, and keys and values, are matrices of their own for Muon; the weights of the logits are none."""
    prior = tiny_prior(layers=2, attention_layers=1, coarser=(2,), classes=3)
    names = {p: name for name, p in prior.named_parameters()}
    parts = {names[p]: count for p, count in prior.matrices().items()}
    halves = {"0.vertical_in", "0.downwards", "0.horizontal_in", "1.vertical_in", "1.downwards", "1.horizontal_in"}
    expected = {f"layers.{x}.weight" for x in halves} | {"attention.1.key_value.weight"}
    assert {name for name, count in parts.items() if count == 2} == expected
    assert parts["layers.0.horizontal_out.weight"] == parts["attention.1.query.weight"] == 1
    assert "to_logits.weight" not in parts and "embedding.weight" not in parts


def test_weights_of_a_code_start_from_its_code_vector() -> None:
    """Distances between embeddings, and between rows of the logits, are as those of the code vectors; scales stay."""
    grids = [LevelGrid("coarse", 2, 2, 3), LevelGrid("own", 4, 4, 4)]
    config = PriorConfig(hidden_channels=512, residual_channels=8, layers=1)
    codebooks = {
        "coarse": torch.tensor([[0.0, 1.0], [0.0, 1.1], [5.0, 0.0]]),
        "own": torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.2], [-30.0, 2.0, 0.0], [20.0, 10.0, 3.0]]),
    }
    plain = build_prior(config, grids, "own", 0, seed=0)
    prior = build_prior(config, grids, "own", 0, seed=0, codebooks=codebooks)
    assert prior.coarser_codes is not None and plain.coarser_codes is not None
    for name, after, before in (
        ("own", prior.embedding.weight, plain.embedding.weight),
        ("own", prior.to_logits.weight, plain.to_logits.weight),
        ("coarse", prior.coarser_codes.embeddings[0].weight, plain.coarser_codes.embeddings[0].weight),
    ):
        wanted, distances = torch.pdist(codebooks[name]), torch.pdist(after)
        torch.testing.assert_close(distances / distances.max(), wanted / wanted.max(), rtol=0.15, atol=0)
        torch.testing.assert_close(after.std(), before.std())
    unchanged = {name: p for name, p in plain.named_parameters() if "embedding" not in name and "logits.w" not in name}
    assert unchanged and all(torch.equal(p, prior.get_parameter(name)) for name, p in unchanged.items())


def test_stages_start_priors_from_code_vectors(tiny_run: tuple[Path, Path]) -> None:
    """After the few steps of the tiny run, embeddings of similar code vectors are still similar."""
    trained = load_autoencoder(tiny_run[1])
    codebooks = trained.module.codebooks()
    for level in codebooks:
        prior = load_prior(tiny_run[1], level, trained).module
        pairs = torch.stack([torch.pdist(codebooks[level]), torch.pdist(prior.embedding.weight)])
        assert torch.corrcoef(pairs)[0, 1] > 0.5
