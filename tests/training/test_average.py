"""Weight averaging, compared with a plain loop."""

import pytest
import torch
from torch import nn

from vqvae2.training.average import WeightAverage

APPLIED = torch.tensor(True)


def test_average_is_that_of_a_loop_with_the_decay_warmed_up() -> None:
    """a <- d a + (1 - d) w with d = min(decay, (1 + step) / (10 + step)), computed in float64."""
    module = nn.Linear(3, 2).double()
    average = WeightAverage(module, decay=0.25)
    expected = module.weight.detach().clone()
    for step in range(6):
        module.weight.data.add_(torch.randn(2, 3))
        average.update(step, APPLIED)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    assert torch.allclose(average.averages["weight"], expected, rtol=1e-6)


def test_short_run_forgets_its_initial_weights() -> None:
    """With a decay of 0.9999, the average after 100 steps with constant weights is within 1 % of them."""
    module = nn.Linear(3, 2)
    module.weight.data.fill_(100.0)
    average = WeightAverage(module, decay=0.9999)
    module.weight.data.fill_(1.0)
    for step in range(100):
        average.update(step, APPLIED)
    assert torch.allclose(average.averages["weight"], torch.ones(2, 3), atol=0.01)


def test_step_that_was_not_applied_leaves_the_average() -> None:
    """A step that was not applied leaves the average unchanged, bit for bit."""
    module = nn.Linear(3, 2)
    average = WeightAverage(module, decay=0.5)
    before = average.averages["weight"].clone()
    module.weight.data.add_(1)
    average.update(5, torch.tensor(False))
    assert torch.equal(average.averages["weight"], before)


def test_swapped_in_and_back() -> None:
    """Inside the context the module has the averaged weights; afterwards both are restored, even after an exception."""
    module = nn.Linear(3, 2)
    weights = module.weight.detach().clone()
    average = WeightAverage(module, decay=0.5)
    average.averages["weight"].fill_(7.0)
    with pytest.raises(KeyError), average.swapped_in():
        assert (module.weight == 7).all()
        raise KeyError
    assert torch.equal(module.weight, weights)
    assert (average.averages["weight"] == 7).all()


def test_weights_without_gradient_are_taken_as_they_are() -> None:
    """Weights without gradient, such as an EMA codebook, are not averaged: `swapped_in` keeps their current values."""
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    average = WeightAverage(module, decay=0.5)
    module.bias.data.fill_(3.0)
    average.update(0, APPLIED)
    with average.swapped_in():
        assert (module.bias == 3).all()


def test_saved_averages_are_taken_up_again() -> None:
    """After loading saved averages, updates give the same values as the original average."""
    module = nn.Linear(3, 2)
    first = WeightAverage(module, decay=0.5)
    first.averages["weight"].fill_(7.0)
    second = WeightAverage(module, decay=0.5)
    second.load({name: tensor.clone() for name, tensor in first.averages.items()})
    for average in (first, second):
        average.update(3, APPLIED)
    assert torch.equal(first.averages["weight"], second.averages["weight"])
