"""Probabilistic PCA against scikit-learn, PyTorch's multivariate normal distribution and a numeric gradient."""

import math

import pytest
import torch
from sklearn.decomposition import PCA
from torch.distributions import MultivariateNormal

from tests.family.small import same, setting, stripes
from vqvae2.family.ppca import PPCA, Fit, fit

LATENTS = 3


def data() -> torch.Tensor:
    """Correlated vectors (200, 8), float64."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 8, dtype=torch.float64, generator=generator)
    return torch.randn(200, 8, dtype=torch.float64, generator=generator) @ mixing + 2


def fitted(correction: int = 0) -> Fit:
    return fit(data().mean(0), torch.cov(data().T, correction=correction), LATENTS)


def test_log_likelihood_and_covariance_are_those_of_scikit_learn():
    """scikit-learn divides the covariance by N - 1."""
    reference = PCA(LATENTS, svd_solver="full").fit(data().numpy())
    ours = fitted(correction=1)
    torch.testing.assert_close(ours.covariance(), torch.from_numpy(reference.get_covariance()), rtol=1e-6, atol=1e-9)
    expected = torch.from_numpy(reference.score_samples(data().numpy()))
    torch.testing.assert_close(ours.log_likelihood(data()), expected, rtol=1e-6, atol=0)


def test_likelihood_rate_and_distortion_are_those_of_the_joint_gaussian():
    """log p(x) is that of N(mean, C); with the exact posterior, log p(x) = E[log p(x|z)] - KL."""
    ours, x = fitted(), data()[:5]
    torch.testing.assert_close(ours.log_likelihood(x), MultivariateNormal(ours.mean, ours.covariance()).log_prob(x))
    weights = ours.components * (ours.eigenvalues - ours.noise).sqrt()
    covariance = torch.linalg.inv(weights.T @ weights / ours.noise + torch.eye(LATENTS))
    mean = (x - ours.mean) @ weights / ours.noise @ covariance
    torch.testing.assert_close(ours.posterior_mean(x), mean)
    prior = MultivariateNormal(torch.zeros(LATENTS).double(), torch.eye(LATENTS).double())
    torch.testing.assert_close(
        ours.rate(x), torch.distributions.kl_divergence(MultivariateNormal(mean, covariance), prior)
    )


def test_the_solution_is_a_maximum_of_the_likelihood():
    """The gradient of the mean log-likelihood by weights and noise is zero."""
    ours = fitted()
    weights = (ours.components * (ours.eigenvalues - ours.noise).sqrt()).requires_grad_()
    noise = ours.noise.clone().requires_grad_()
    covariance = weights @ weights.T + noise * torch.eye(8)
    MultivariateNormal(ours.mean, covariance).log_prob(data()).mean().backward()
    assert weights.grad.abs().max() < 1e-6 and noise.grad.abs() < 1e-6


@pytest.mark.parametrize(("observation", "values"), [("bernoulli", 2), ("gaussian", 256)])
def test_the_member_gives_the_likelihood_of_dequantised_pixels(observation: str, values: int):
    member, batch = PPCA(setting(observation)), stripes(observation)
    member.finish([batch], same)
    x = member.dequantised(batch.images, torch.Generator().manual_seed(0))
    assert torch.equal((x * values).floor(), (batch.images.flatten(1).double() * values / 256).floor())
    bound = member.bound(batch.images, batch.labels, torch.Generator().manual_seed(0))
    density = MultivariateNormal(member.mean, member.fitted().covariance()).log_prob(x)
    torch.testing.assert_close(bound.rate + bound.distortion, 64 * math.log(values) - density, rtol=1e-6, atol=1e-6)
    errors = (member.reconstruct(batch.images, batch.labels).float() - batch.images.float()).square().mean()
    assert errors < 0.75 * batch.images.float().var()
