"""Scalar quantization against Max's table and numeric integrals, and the gain of vectors against its prediction."""

import math

import pytest
import torch

from vqvae2.autoencoder.codebooks import k_means
from vqvae2.family.quantisation import SOURCES, Density, gain_of_vectors, gaussian, laplacian, lloyd_max

# Max 1960, table I, and, for the Laplacian, Paez and Glisson 1972, table I: mean squared error at 1 to 4 bits
TABLES = {gaussian: [0.3634, 0.1175, 0.03454, 0.009497], laplacian: [0.5, 0.1762, 0.0545, 0.0154]}


def values(density: Density, x: torch.Tensor) -> torch.Tensor:
    """The probability density at x."""
    if density is gaussian:
        return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return torch.exp(-math.sqrt(2) * x.abs()) / math.sqrt(2)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_gaussian_distortion_is_that_of_max(bits: int):
    """The distortion agrees with the table of Max to 0.1 %."""
    assert lloyd_max(gaussian, 2**bits).distortion == pytest.approx(TABLES[gaussian][bits - 1], rel=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_laplacian_distortion_is_that_of_the_literature(bits: int):
    """The distortion agrees with the table of Paez and Glisson to its three digits."""
    assert lloyd_max(laplacian, 2**bits).distortion == pytest.approx(TABLES[laplacian][bits - 1], rel=3e-3)


@pytest.mark.parametrize("density", [gaussian, laplacian])
def test_both_conditions_hold_by_numeric_integration(density: Density):
    """On a fine grid, each level is the mean of its nearest points, and the distortion is their mean squared error."""
    quantiser = lloyd_max(density, 8)
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    weights = values(density, x) * (x[1] - x[0])
    nearest = torch.searchsorted(quantiser.thresholds, x)
    mass = torch.zeros(8, dtype=torch.float64).index_add_(0, nearest, weights)
    first = torch.zeros(8, dtype=torch.float64).index_add_(0, nearest, weights * x)
    torch.testing.assert_close(first / mass, quantiser.levels, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(quantiser.thresholds, (quantiser.levels[1:] + quantiser.levels[:-1]) / 2)
    distortion = (weights * (x - quantiser.levels[nearest]).square()).sum().item()
    assert distortion == pytest.approx(quantiser.distortion, rel=1e-4)


def test_k_means_on_numbers_finds_lloyd_max():
    """In one dimension, k-means on samples of a Gaussian approaches the levels of Lloyd-Max."""
    generator = torch.Generator().manual_seed(0)
    centres, _ = k_means(torch.randn(20_000, 1, generator=generator), 4, generator, iterations=30)
    levels = lloyd_max(gaussian, 4).levels.float()
    torch.testing.assert_close(centres.flatten().sort().values, levels, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", SOURCES)
def test_sources_have_unit_variance_and_their_correlation(name: str):
    """The sources have variance 1 and the correlation that the prediction uses."""
    x = SOURCES[name].draw(torch.Generator().manual_seed(0), 50_000, 3)
    expected = torch.tensor([[SOURCES[name].memory ** abs(i - j) for j in range(3)] for i in range(3)])
    torch.testing.assert_close(torch.cov(x.T), expected, rtol=0, atol=0.04)


def test_gain_of_memory_is_as_predicted():
    """At 3 bits in two dimensions, the AR(1) source gains over the Gaussian what high-resolution theory predicts."""
    plain, correlated = (gain_of_vectors(name, 3, 2, count=8192) for name in ("Gaussian", "AR(1)"))
    assert correlated.memory == pytest.approx(10 * math.log10((1 - 0.9**2) ** -0.5))
    assert correlated.measured - plain.measured == pytest.approx(correlated.memory, abs=0.5)
    assert 0.1 < plain.measured < plain.space_filling + plain.shape
