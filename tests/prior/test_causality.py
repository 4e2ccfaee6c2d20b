"""The receptive field of a prior, measured with gradients."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from tests.prior.priors import some_codes, tiny_prior
from vqvae2.prior.prior import Prior


def seen(prior: Prior, source: nn.Embedding) -> torch.Tensor:
    """Whether the logits at each position depend on each embedded code from `source`: bool (H, W, h, w)."""
    codes, coarser, labels = some_codes(prior, batch=1)
    leaves = []

    def cut(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = source.register_forward_hook(cut)
    logits = prior(codes, coarser, labels)[0]
    handle.remove()
    mixed = (
        logits * torch.randn(len(logits), 1, 1, dtype=logits.dtype, generator=torch.Generator().manual_seed(3))
    ).sum(0)
    gradients = [torch.autograd.grad(x, leaves[0], retain_graph=True)[0][0] for x in mixed.flatten()]
    return torch.stack([x.abs().sum(-1) > 0 for x in gradients]).view(*mixed.shape, *gradients[0].shape[:-1])


def earlier(height: int, width: int) -> torch.Tensor:
    """Whether the second position precedes the first in raster order: bool (H, W, H, W)."""
    order = torch.arange(height * width)
    return (order[:, None] > order[None, :]).view(height, width, height, width)


def rectangle(height: int, width: int, distance: int) -> torch.Tensor:
    """Whether two positions are at most `distance` rows and columns apart: bool (H, W, H, W)."""
    positions = list(product(range(height), range(width)))
    near = [max(abs(i - k), abs(j - m)) <= distance for i, j in positions for k, m in positions]
    return torch.tensor(near).view(height, width, height, width)


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((6, 6), {"attention_layers": 1, "layers": 1}),
        ((6, 6), {"attention_layers": 1, "layers": 3, "output_layers": 1}),
        ((6, 6), {"attention_layers": 2, "kernel_size": 5, "classes": 3}),
        ((4, 7), {"attention_layers": 1, "kernel_size": 5}),
        ((7, 3), {"attention_layers": 2, "coarser": (1,)}),
    ],
)
def test_attention_sees_every_earlier_code_and_no_other(grid: tuple[int, int], options: dict[str, Any]) -> None:
    """With attention, each position depends on all earlier positions, but not on itself or later ones.

    On a 6 x 6 grid these are 630 pairs.
    """
    prior = tiny_prior(grid, **options)
    before = seen(prior, prior.embedding)
    assert before.sum() == len(before.flatten()) / 2 - grid[0] * grid[1] / 2
    assert torch.equal(before, earlier(*grid))
    assert prior.reach() == (None, None)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize(("grid", "coarser"), [((6, 6), (2,)), ((4, 7), ()), ((9, 5), ())])
def test_without_attention_the_rectangle_is_seen_whole(
    grid: tuple[int, int], coarser: tuple, layers: int, kernel_size: int
) -> None:
    """Without attention, the receptive field is the earlier part of the rectangle whose size `reach` returns.

    It extends kernel_size // 2 positions per layer up and to either side.
    """
    prior = tiny_prior(grid, coarser=coarser, layers=layers, kernel_size=kernel_size)
    distance = kernel_size // 2 * layers
    assert prior.reach() == (distance, distance)
    assert torch.equal(seen(prior, prior.embedding), earlier(*grid) & rectangle(*grid, distance))


@pytest.mark.parametrize("coarser", [(1,), (2,), (4, 2), (4, 2, 1)])
@pytest.mark.parametrize("conditioning_layers", [0, 2])
def test_coarser_codes_reach_every_position(coarser: tuple[int, ...], conditioning_layers: int) -> None:
    """The logits at each position depend on the code of each coarser level that covers this position."""
    height, width = 4, 8
    prior = tiny_prior((height, width), coarser=coarser, conditioning_layers=conditioning_layers, layers=1)
    for embedding, ratio in zip(prior.coarser_codes.embeddings, coarser, strict=True):
        known = seen(prior, embedding)
        assert all(known[i, j, i // ratio, j // ratio] for i in range(height) for j in range(width))


@pytest.mark.parametrize("options", [{}, {"attention_layers": 1}, {"coarser": (2,)}])
def test_label_reaches_every_position(options: dict[str, Any]) -> None:
    """The logits at every position, including the first, depend on the label."""
    prior = tiny_prior((4, 6), classes=3, **options)
    assert seen(prior, prior.label.embedding).all()


def test_label_that_is_not_given_is_one_more_label() -> None:
    """No label and any negative label give the same logits, which differ from those of the classes."""
    prior = tiny_prior((3, 3), classes=3)
    codes, _, _ = some_codes(prior, batch=4)
    logits = prior(codes, None, torch.tensor([-1, -7, 0, 2]))
    nothing = prior(codes)
    same = [torch.allclose(a, b, atol=1e-12) for a, b in zip(logits, nothing, strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("options", [{"attention_layers": 1}, {"coarser": (2,), "classes": 2}])
def test_probabilities_of_all_code_maps_sum_to_one(options: dict[str, Any]) -> None:
    """The probabilities of all 81 grids of 2 x 2 codes from a codebook of 3 sum to one."""
    prior = tiny_prior((2, 2), codes=3, **options)
    maps = torch.tensor(list(product(range(3), repeat=4))).view(81, 2, 2)
    _, coarser, labels = some_codes(prior, batch=1)
    coarser = coarser and {name: codes.expand(81, -1, -1) for name, codes in coarser.items()}
    logits = prior(maps, coarser, None if labels is None else labels.expand(81))
    log_likelihoods = logits.log_softmax(1).gather(1, maps[:, None]).sum((1, 2, 3))
    assert log_likelihoods.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_likelihoods.std() > 0.01
