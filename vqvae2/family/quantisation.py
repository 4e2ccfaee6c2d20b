"""Scalar quantization for a known density, and the gain of vector over scalar quantization at equal rate.

`python -m vqvae2.family.quantisation` prints the table of quantisation.md.

The sources have mean 0 and variance 1. A distortion is the mean squared error per sample, a rate is in bits per sample.
The prediction is that of high-resolution theory (Lookabaugh and Gray 1989, "High-resolution quantization theory and
the vector quantizer advantage"): the gain is the product of a space-filling, a shape and a memory factor.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2.autoencoder.codebooks import k_means
from vqvae2.autoencoder.quantiser import nearest_codes
from vqvae2.run.seeding import keyed_generator

TOLERANCE = 1e-8  # of the levels, between two iterations of Lloyd-Max
REACH = 12.0  # the initial levels are quantiles within this distance of the mean
CORRELATION = 0.9  # between neighboring samples of the AR(1) source
VECTORS = 2**16  # for training, and as many others for measuring
KMEANS_ITERATIONS = 50
RATES = ((1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (4, 2))  # bits per sample and dimension, at most 256 code vectors
# Normalized second moment of a cell of the best known lattice: the interval, the hexagon, D4 and E8 (Conway and
# Sloane 1982, "Voronoi regions of lattices, second moments of polytopes, and quantization").
CELL_MOMENT = {1: 1 / 12, 2: 5 / (36 * math.sqrt(3)), 4: 13 / (120 * math.sqrt(2)), 8: 929 / 12960}


class Moments(NamedTuple):
    """Moments of a density below thresholds t: the integrals of p(x), x p(x) and x^2 p(x) up to t, each like t."""

    mass: Tensor
    first: Tensor
    second: Tensor


Density = Callable[[Tensor], Moments]  # of mean 0 and variance 1


class ScalarQuantiser(NamedTuple):
    """A quantizer of numbers.

    Attributes:
        levels: the K reproduction levels in ascending order, float64 (K,).
        thresholds: the borders between their cells, float64 (K - 1,).
        distortion: the mean squared error.
    """

    levels: Tensor
    thresholds: Tensor
    distortion: float


class Gain(NamedTuple):
    """Gain of vector over scalar quantization, in decibels of the mean squared error.

    Attributes:
        measured: ratio of the distortions of Lloyd-Max and of k-means on vectors that k-means has not seen.
        space_filling: prediction for many bits: cells rounder than a cube.
        shape: prediction for many bits: code vectors where the joint density of independent samples is high.
        memory: prediction for many bits: code vectors where dependent samples are.
    """

    measured: float
    space_filling: float
    shape: float
    memory: float


def gaussian(thresholds: Tensor) -> Moments:
    """Moments of the standard normal density."""
    density = torch.exp(-thresholds.square() / 2) / math.sqrt(2 * math.pi)
    mass = torch.special.ndtr(thresholds)
    return Moments(mass, -density, mass - thresholds * density)


def laplacian(thresholds: Tensor) -> Moments:
    """Moments of the Laplacian density with variance 1, exp(-sqrt(2) |x|) / sqrt(2)."""
    left = -thresholds.abs()
    tail = torch.exp(math.sqrt(2) * left) / 2  # mass beyond the threshold, away from 0
    second = tail * (left.square() - math.sqrt(2) * left + 1)
    right = thresholds > 0
    return Moments(
        torch.where(right, 1 - tail, tail), tail * (left - math.sqrt(0.5)), torch.where(right, 1 - second, second)
    )


def lloyd_max(density: Density, num_levels: int) -> ScalarQuantiser:
    """The quantizer with the smallest mean squared error (Max 1960, "Quantizing for minimum distortion").

    Alternates the two necessary conditions until the levels stay the same: each threshold is halfway between its
    levels (nearest neighbor), and each level is the mean of the density in its cell (centroid). For a log-concave
    density, such as the Gaussian and the Laplacian, they have one solution.
    """
    grid = torch.linspace(-REACH, REACH, 10_001, dtype=torch.float64)
    quantiles = (torch.arange(num_levels, dtype=torch.float64) + 0.5) / num_levels
    levels = grid[torch.searchsorted(density(grid).mass, quantiles)]
    levels = (levels - levels.flip(0)) / 2  # an asymmetric start converges slowly for the Laplacian
    while True:
        thresholds = (levels[1:] + levels[:-1]) / 2
        mass, first, second = _of_cells(density, thresholds)
        former, levels = levels, first / mass
        if (levels - former).abs().max() < TOLERANCE:
            distortion = (second - 2 * levels * first + levels.square() * mass).sum()
            return ScalarQuantiser(levels, thresholds, distortion.item())


def _of_cells(density: Density, thresholds: Tensor) -> Moments:
    """Moments of the cells between -inf, the thresholds (K - 1,) and inf: (K,) each."""
    below = torch.stack(density(thresholds))  # (3, K - 1)
    everything = below.new_tensor([[1.0], [0.0], [1.0]])
    return Moments(*torch.cat([torch.zeros_like(everything), below, everything], dim=1).diff(dim=1))


class Source(NamedTuple):
    """A stationary source.

    Attributes:
        marginal: density of a sample.
        draw: draws blocks of consecutive samples, (N, D), from a generator, N and D.
        tails: the norm of the joint density of D independent samples with exponent D / (D + 2), a function of D.
        memory: correlation of neighboring samples.
    """

    marginal: Density
    draw: Callable[[torch.Generator, int, int], Tensor]
    tails: Callable[[int], float]
    memory: float = 0.0


def _draw_gaussian(generator: torch.Generator, count: int, dimension: int) -> Tensor:
    return torch.randn(count, dimension, generator=generator)


def _draw_laplacian(generator: torch.Generator, count: int, dimension: int) -> Tensor:
    one, other = torch.empty(2, count, dimension).exponential_(math.sqrt(2), generator=generator)
    return one - other


def _draw_ar1(generator: torch.Generator, count: int, dimension: int) -> Tensor:
    """x_t = rho x_(t-1) + sqrt(1 - rho^2) e_t with Gaussian e_t."""
    samples = list(_draw_gaussian(generator, count, dimension).unbind(1))
    for t in range(1, dimension):
        samples[t] = CORRELATION * samples[t - 1] + math.sqrt(1 - CORRELATION**2) * samples[t]
    return torch.stack(samples, dim=1)


def _gaussian_tails(dimension: int) -> float:
    return 2 * math.pi * ((dimension + 2) / dimension) ** (dimension / 2 + 1)


def _laplacian_tails(dimension: int) -> float:
    return 2 * ((dimension + 2) / dimension) ** (dimension + 2)


SOURCES = {
    "Gaussian": Source(gaussian, _draw_gaussian, _gaussian_tails),
    "Laplacian": Source(laplacian, _draw_laplacian, _laplacian_tails),
    "AR(1)": Source(gaussian, _draw_ar1, _gaussian_tails, CORRELATION),
}


def gain_of_vectors(name: str, bits: int, dimension: int, count: int = VECTORS) -> Gain:
    """Compare k-means on blocks of samples with Lloyd-Max on single samples, both at `bits` per sample.

    Args:
        name: one of SOURCES.
        bits: rate in bits per sample; the codebook has 2 ** (bits * dimension) code vectors.
        dimension: samples in a block, one of CELL_MOMENT.
        count: blocks for training, and as many others for measuring.
    """
    source = SOURCES[name]
    generator = keyed_generator(0, name, bits, dimension)
    blocks, others = source.draw(generator, 2 * count, dimension).chunk(2)
    codebook, _ = k_means(blocks, 2 ** (bits * dimension), generator, iterations=KMEANS_ITERATIONS)
    distortion = F.mse_loss(codebook[nearest_codes(others, codebook)], others).item()
    # for the AR(1) source, the determinant of the covariance of a block is (1 - rho^2)^(D - 1)
    memory = (1 - source.memory**2) ** ((1 - dimension) / dimension)
    return Gain(
        decibels(lloyd_max(source.marginal, 2**bits).distortion / distortion),
        decibels(CELL_MOMENT[1] / CELL_MOMENT[dimension]),
        decibels(source.tails(1) / source.tails(dimension)),
        decibels(memory),
    )


def decibels(ratio: float) -> float:
    """10 log10 of a ratio of distortions."""
    return 10 * math.log10(ratio)


def print_gains() -> None:
    """Print a table of the gains of every source, in Markdown."""
    print("| source | bits per sample | dimension | measured | predicted | space filling | shape | memory |")
    print("|---|---|---|---|---|---|---|---|")
    for name in SOURCES:
        for bits, dimension in RATES:
            gain = gain_of_vectors(name, bits, dimension)
            figures = (gain.measured, sum(gain[1:]), *gain[1:])
            print(f"| {name} | {bits} | {dimension} | " + " | ".join(f"{x:.2f}" for x in figures) + " |", flush=True)


if __name__ == "__main__":
    print_gains()
