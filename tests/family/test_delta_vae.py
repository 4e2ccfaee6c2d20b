"""The smallest rate of the delta-VAE against a numeric minimization, and its rate against torch.distributions."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from tests.family.small import setting, stripes, trained
from vqvae2.errors import UserError
from vqvae2.family.delta_vae import DeltaVAE, conditional_prior, correlation_for, smallest_rate
from vqvae2.family.vae import Gaussian

LENGTH = 5
OPTIONS = {"sequence_length": LENGTH, "sequence_dim": 2, "delta": 3.0}
LABELS = torch.zeros(7, dtype=torch.long)


def small() -> DeltaVAE:
    torch.manual_seed(0)
    return DeltaVAE(setting(**OPTIONS))


def joint(correlation: float) -> MultivariateNormal:
    """The AR(1) prior of one dimension, from its covariance a^|i - j|."""
    t = torch.arange(LENGTH, dtype=torch.float64)
    return MultivariateNormal(torch.zeros(LENGTH, dtype=torch.float64), correlation ** (t[:, None] - t).abs())


def test_smallest_rate_is_that_of_a_numeric_minimization():
    prior = joint(0.7)
    log_deviation = torch.zeros(LENGTH, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_deviation], max_iter=100, tolerance_grad=1e-12)

    def divergence() -> torch.Tensor:
        optimiser.zero_grad()
        posterior = MultivariateNormal(torch.zeros(LENGTH).double(), torch.diag_embed((2 * log_deviation).exp()))
        value = kl_divergence(posterior, prior)
        value.backward()
        return value

    optimiser.step(divergence)
    assert smallest_rate(0.7, LENGTH, dimensions=3) == pytest.approx(3 * divergence().item(), rel=1e-8)


@pytest.mark.parametrize("delta", [0.01, 1.0, 30.0])
def test_the_correlation_gives_delta(delta: float):
    assert smallest_rate(correlation_for(delta, 16, 2), 16, 2) == pytest.approx(delta, rel=1e-5)


def test_a_delta_that_needs_a_correlation_of_one_is_refused():
    with pytest.raises(UserError, match=r"members\.delta: 100"):
        correlation_for(100.0, 16, 2)


def test_rate_and_log_prior_are_those_of_the_joint_gaussian():
    member = small()
    generator = torch.Generator().manual_seed(0)
    mean, log_deviation = torch.randn(2, 7, 2 * LENGTH, dtype=torch.float64, generator=generator)
    prior = joint(member.correlation)
    expected = torch.zeros(7, dtype=torch.float64)
    density = torch.zeros(7, dtype=torch.float64)
    for i in range(2):
        m, s = mean[:, i::2], log_deviation[:, i::2].exp()
        expected += kl_divergence(MultivariateNormal(m, torch.diag_embed(s.square())), prior)
        density += prior.log_prob(m)
    torch.testing.assert_close(member.rate(Gaussian(mean, log_deviation), LABELS), expected)
    torch.testing.assert_close(member.log_prior(mean, LABELS), density)


def test_draws_of_the_prior_invert_its_conditionals():
    """The noise of the prior's draws is recovered by standardizing each vector given the one before it."""
    member = small()
    noise = torch.randn(7, 2 * LENGTH, generator=torch.Generator().manual_seed(0))
    z = member.draw_prior(noise, LABELS)
    conditional = conditional_prior(z.unflatten(1, (LENGTH, 2)), member.correlation)
    torch.testing.assert_close((z - conditional.mean) / conditional.log_deviation.exp(), noise, rtol=1e-4, atol=1e-5)


def test_no_posterior_has_a_smaller_rate_and_training_keeps_it():
    member = small()
    generator = torch.Generator().manual_seed(0)
    mean, log_deviation = 0.1 * torch.randn(2, 500, 2 * LENGTH, generator=generator)
    log_deviation = log_deviation + torch.linspace(-4, 2, 500)[:, None]
    assert (member.rate(Gaussian(mean, log_deviation), LABELS) >= 3.0).all()
    losses = trained(member.train(), stripes(), steps=25)
    with torch.no_grad():
        rate = member.bound(stripes().images, stripes().labels, generator).rate
    assert losses[-1] < 0.8 * losses[0] and (rate >= 3.0).all()
