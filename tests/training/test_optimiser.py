"""The optimizer: its state as tensors, skipped steps, learning rate factors, and Muon for matrices."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from vqvae2.training.muon import orthogonalise
from vqvae2.training.optimiser import build_optimiser, load_optimiser_state, optimiser_state, set_rate, skip_where


def a_module(channels_last: bool) -> nn.Module:
    """Return a module with one parameter that requires no gradient."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    module[1].bias.requires_grad_(False)
    return module.to(memory_format=torch.channels_last) if channels_last else module


def steps(module: nn.Module, optimiser: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        module(torch.randn(2, 3, 6, 7, generator=generator)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_loaded_state_goes_on_bit_for_bit(channels_last: bool, muon: bool) -> None:
    """Steps after a round trip through safetensors equal those without interruption, bit for bit."""
    straight, resumed = a_module(channels_last), a_module(channels_last)
    optimiser, second = (
        build_optimiser(x, {}, matrices={x[0].weight: 2} if muon else {}, weight_decay=0.1) for x in (straight, resumed)
    )
    steps(straight, optimiser, range(3))
    saved = load(save({name: x.contiguous() for name, x in optimiser_state(optimiser, straight).items()}))
    assert ("0.weight.momentum" in saved) == muon
    resumed.load_state_dict({name: x.clone() for name, x in straight.state_dict().items()})
    load_optimiser_state(second, resumed, saved)
    steps(straight, optimiser, range(3, 6))
    steps(resumed, second, range(3, 6))
    assert not torch.equal(straight[0].weight, a_module(channels_last)[0].weight)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    again = optimiser_state(second, resumed)
    assert all(torch.equal(x, again[name]) for name, x in optimiser_state(optimiser, straight).items())


@pytest.mark.parametrize("muon", [False, True])
def test_a_step_is_skipped(muon: bool) -> None:
    """A step is skipped where `found_inf` is 1, even with NaN gradients; the attribute is undocumented."""
    module = a_module(channels_last=False)
    optimiser = build_optimiser(module, {}, matrices={module[0].weight: 1} if muon else {}, weight_decay=0.1)
    set_rate(optimiser, 1e-3)
    before = [p.detach().clone() for p in module.parameters()]
    skip_where(optimiser, torch.tensor(True))
    steps(module, optimiser, range(1))
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    skip_where(optimiser, torch.tensor(False))
    steps(module, optimiser, range(1))
    assert not torch.equal(module[0].weight, before[0])
    before = [p.detach().clone() for p in module.parameters()]
    state = {name: x.clone() for name, x in optimiser_state(optimiser, module).items()}
    (module(torch.full((2, 3, 6, 7), torch.nan)).sum()).backward()
    skip_where(optimiser, torch.tensor(True))
    optimiser.step()
    optimiser.zero_grad()
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    assert all(torch.equal(x, state[name]) for name, x in optimiser_state(optimiser, module).items())
    skip_where(optimiser, torch.tensor(False))
    steps(module, optimiser, range(1, 2))
    assert not torch.equal(module[0].weight, before[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (12, 12), (200, 300)])
def test_orthogonalised_matrices_have_equal_singular_values(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Singular values are about 1, singular vectors and the order of the matrices stay."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(3, n, min(shape)))[0] for n in shape)
    values = torch.linspace(1, 5, min(shape))
    result = orthogonalise((left * values @ right.mT).to(dtype)).float()
    aligned = left.mT @ result @ right
    assert aligned.diagonal(dim1=1, dim2=2).sub(1).abs().max() < 0.35
    assert (aligned - torch.diag_embed(aligned.diagonal(dim1=1, dim2=2))).abs().max() < 0.05


def test_kernels_are_matrices_of_outputs_and_inputs() -> None:
    """The first update of a kernel is the orthogonal matrix nearest to its gradient, times rate and shape factor."""
    module = nn.Conv2d(3, 40, (1, 2), bias=False).to(memory_format=torch.channels_last)
    before = module.weight.detach().clone()
    optimiser = build_optimiser(module, {}, matrices={module.weight: 1})
    set_rate(optimiser, 0.1)
    module.weight.grad = torch.randn_like(module.weight)
    left, _, right = torch.linalg.svd(module.weight.grad.flatten(1), full_matrices=False)
    optimiser.step()
    moved = (before - module.weight.detach()).flatten(1) / (0.1 * (40 / 6) ** 0.5)
    assert (moved - left @ right).abs().max() < 0.2
    assert torch.nn.functional.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0) > 0.97


def test_parts_of_a_weight_are_matrices_of_their_own() -> None:
    """A weight of N parts, one below the other, is updated as N weights of one part."""
    torch.manual_seed(0)
    whole = nn.Linear(10, 12, bias=False)
    thirds = nn.ModuleList(nn.Linear(10, 4, bias=False) for _ in range(3))
    with torch.no_grad():
        whole.weight.copy_(torch.cat([x.weight for x in thirds]))
    before = whole.weight.detach().clone()
    cases = [(whole, {whole.weight: 3}, [12]), (thirds, {x.weight: 1 for x in thirds}, [4, 4, 4])]
    for module, matrices, outputs in cases:
        optimiser = build_optimiser(module, {}, matrices=matrices)
        set_rate(optimiser, 0.1)
        for seed in range(2):
            gradient = torch.randn(12, 10, generator=torch.Generator().manual_seed(seed))
            for parameter, part in zip(module.parameters(), gradient.split(outputs), strict=True):
                parameter.grad = part.clone()
            optimiser.step()
    assert torch.allclose(whole.weight, torch.cat([x.weight for x in thirds]), atol=1e-6)
    assert (whole.weight - before).norm(dim=1).min() > 0.05


def test_weight_decay_shrinks_the_matrices_alone() -> None:
    """With decay d and rate r, a matrix loses r * d of itself besides the update; a bias does not."""
    plain, decayed = (a_module(channels_last=False) for _ in range(2))
    before = plain[0].weight.detach().clone()
    for module, decay in ((plain, 0.0), (decayed, 0.5)):
        optimiser = build_optimiser(module, {}, matrices={module[0].weight: 1}, weight_decay=decay)
        set_rate(optimiser, 0.1)
        steps(module, optimiser, range(1))
    assert torch.allclose(decayed[0].weight, plain[0].weight - 0.05 * before, atol=1e-6)
    assert torch.equal(decayed[0].bias, plain[0].bias) and torch.equal(decayed[1].weight, plain[1].weight)


def test_step_follows_adam() -> None:
    """The first step moves each weight by the learning rate, against the sign of its gradient.

    Weights without gradient do not change.
    """
    module = nn.Linear(2, 1).double()
    module.bias.requires_grad_(False)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    optimiser = build_optimiser(module, {})
    optimiser.param_groups[0]["lr"] = 0.01
    module(torch.tensor([[3.0, -5.0]], dtype=torch.float64)).sum().backward()
    optimiser.step()
    assert torch.allclose(module.weight - weight, torch.tensor([[-0.01, 0.01]], dtype=torch.float64))
    assert torch.equal(module.bias, bias)


def test_rate_is_multiplied_where_a_factor_is_given() -> None:
    """The first update of Adam equals the learning rate, multiplied by 3 where a factor of 3 is given."""
    module = a_module(channels_last=False)
    before = [p.detach().clone() for p in module.parameters()]
    optimiser = build_optimiser(module, {module[0].weight: 3.0})
    set_rate(optimiser, 1e-3)
    steps(module, optimiser, range(1))
    moved = [(p - b).abs().max().item() for p, b in zip(module.parameters(), before, strict=True)]
    assert moved == pytest.approx([3e-3, 1e-3, 1e-3, 0], rel=1e-3)
