"""The receptive field of a prior, measured with gradients."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from tests.prior.priors import some_codes, tiny_prior
from vqvae2.prior.prior import Prior, Reach


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


def legal(height: int, width: int, right_reach: int | None) -> torch.Tensor:
    """Whether each position may depend on each position, bool (H, W, H, W), written as in the documentation.

    Position (i, j) may see (i, c) for c < j, and (i - k, c) for c <= j + k (R + 1) - 1.
    """
    may = torch.zeros(height, width, height, width, dtype=torch.bool)
    for i, j, above, c in product(range(height), range(width), range(height), range(width)):
        k = i - above
        limit = width if right_reach is None else j + k * (right_reach + 1) - 1
        may[i, j, above, c] = c < j if k == 0 else k > 0 and c <= limit
    return may


def rectangle(height: int, width: int, reach: Reach) -> torch.Tensor:
    """Which positions are within the reach of each position."""
    positions = list(product(range(height), range(width)))
    near = [i - k <= reach.rows and -reach.left <= m - j <= reach.right for i, j in positions for k, m in positions]
    return torch.tensor(near).view(height, width, height, width)


@pytest.mark.parametrize("right_reach", [None, 0, 1, 2, 5])
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
def test_attention_sees_every_legal_code_and_no_other(
    grid: tuple[int, int], options: dict[str, Any], right_reach: int | None
) -> None:
    """With attention, each position depends on all legal positions, but not on itself, later ones or rows below.

    Without a limit to the right these are 630 pairs on a 6 x 6 grid.
    """
    prior = tiny_prior(grid, right_reach=right_reach, **options)
    before = seen(prior, prior.embedding)
    assert right_reach is not None or before.sum() == len(before.flatten()) / 2 - grid[0] * grid[1] / 2
    assert torch.equal(before, legal(*grid, right_reach))
    assert prior.reach() == (None, None, right_reach)


@pytest.mark.parametrize("right_reach", [None, 0, 2])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize(("grid", "coarser"), [((6, 6), (2,)), ((4, 7), ()), ((9, 5), ())])
def test_without_attention_the_rectangle_is_seen_whole(
    grid: tuple[int, int], coarser: tuple, layers: int, kernel_size: int, right_reach: int | None
) -> None:
    """Without attention, the receptive field is the legal part of the rectangle whose size `reach` returns.

    It extends kernel_size // 2 positions per layer up and to the left, and to the right up to `right_reach`.
    """
    prior = tiny_prior(grid, coarser=coarser, layers=layers, kernel_size=kernel_size, right_reach=right_reach)
    distance = kernel_size // 2 * layers
    right = distance if right_reach is None else min(distance, right_reach)
    assert prior.reach() == (distance, distance, right)
    assert torch.equal(seen(prior, prior.embedding), legal(*grid, right_reach) & rectangle(*grid, prior.reach()))


@pytest.mark.parametrize("right_reach", [None, 0, 1, 2])
@pytest.mark.parametrize("attention_layers", [0, 1])
def test_everything_seen_belongs_to_an_earlier_wave(attention_layers: int, right_reach: int | None) -> None:
    """A position depends only on positions of earlier waves, so all positions of a wave can be sampled at once."""
    prior = tiny_prior((6, 6), attention_layers=attention_layers, right_reach=right_reach)
    waves = torch.arange(6) + prior.stride() * torch.arange(6)[:, None]
    before = seen(prior, prior.embedding)
    assert (waves[None, None] < waves[..., None, None])[before].all()
    if right_reach is not None:
        assert waves.max() + 1 == 6 + 5 * (right_reach + 1)


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
