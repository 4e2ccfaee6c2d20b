"""Completion with weighted particles, compared with the exact conditional distribution of a small hierarchy."""

from itertools import product

import pytest
import torch

from tests.prior.priors import tiny_prior
from vqvae2.prior.kept import Kept
from vqvae2.prior.particles import Particles
from vqvae2.prior.prior import Prior
from vqvae2.prior.sampling import Controls, sample_levels
from vqvae2.prior.waves import num_waves

MASK = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)  # the first and the last code of row 0 are free
GIVEN = torch.tensor([[[0, 1, 0, 0], [1, 1, 0, 1]]])


def hierarchy(guidance: float = 1.0) -> tuple[dict[str, Prior], dict[str, Controls], torch.Tensor]:
    """Two priors over 1 x 2 codes of 3 and 2 x 4 codes of 2, controls, and the exact distribution of completions.

    The bottom depends strongly on the top. The distribution is over the free codes: 3 x 3 of the top, 2 x 2 of the
    bottom, in this order.
    """
    top = tiny_prior((1, 2), codes=3, attention_layers=1, classes=2)
    top.grid = top.grid._replace(name="coarse2")
    bottom = tiny_prior((2, 4), codes=2, coarser=(2,), classes=2)
    bottom.coarser_codes.embeddings[0].weight.data.mul_(4)
    controls = Controls(temperature=0.7, guidance=guidance)
    log_probabilities = []
    for codes in product(range(3), range(3), range(2), range(2)):
        tops = torch.tensor(codes[:2]).view(1, 1, 2)
        bottoms = GIVEN.clone()
        bottoms[0, ~MASK] = torch.tensor(codes[2:])
        total = 0.0
        for prior, own, coarser in ((top, tops, None), (bottom, bottoms, {"coarse2": tops})):
            logits = prior(own, coarser, torch.tensor([1]))
            nothing = prior(own, coarser, None)
            mixed = (nothing + guidance * (logits - nothing)) / controls.temperature
            total += mixed.log_softmax(1).gather(1, own[:, None]).sum().item()
        log_probabilities.append(total)
    exact = torch.tensor(log_probabilities, dtype=torch.float64).softmax(0)
    return {"coarse2": top, "own": bottom}, {"coarse2": controls, "own": controls}, exact


def completed(
    priors: dict[str, Prior], controls: dict[str, Controls], images: int, count: int
) -> tuple[torch.Tensor, Particles | None]:
    """Frequency of each completion among many images, and their particles."""
    generator = torch.Generator().manual_seed(0)

    def uniforms(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    drawn = {name: uniforms(images * count, x.grid.height * x.grid.width) for name, x in priors.items()}
    resampling = {name: uniforms(images, num_waves(x)) for name, x in priors.items()}
    particles = Particles(images, count, resampling) if count > 1 else None
    labels = torch.ones(images * count, dtype=torch.long)
    codes = sample_levels(priors, drawn, labels, controls, {"own": Kept(GIVEN, MASK)}, particles=particles)
    rows = torch.arange(images) if particles is None else particles.choose(uniforms(images))
    top, bottom = codes["coarse2"][rows].flatten(1), codes["own"][rows]
    assert (bottom[:, MASK] == GIVEN[:, MASK]).all()
    free = bottom[:, ~MASK]
    index = ((top[:, 0] * 3 + top[:, 1]) * 2 + free[:, 0]) * 2 + free[:, 1]
    return torch.bincount(index, minlength=36) / images, particles


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_completions_converge_to_the_exact_conditional_distribution(guidance: float) -> None:
    """The total variation distance from p(free codes | kept codes) falls as the number of particles grows."""
    priors, controls, exact = hierarchy(guidance)
    distances = []
    for count in (1, 4, 64):
        frequencies, _ = completed(priors, controls, images=3000, count=count)
        distances.append(0.5 * (frequencies - exact).abs().sum().item())
    assert distances[0] > 0.15 and distances[1] < distances[0]
    assert distances[2] < 0.06  # 3000 samples of 36 outcomes are themselves about 0.04 from their distribution


@torch.no_grad()
def test_ancestors_that_survive_are_counted() -> None:
    """Without kept codes all particles survive; with them some are lost by resampling, and each image keeps one."""
    priors, controls, _ = hierarchy()
    _, particles = completed(priors, controls, images=50, count=16)
    assert particles is not None
    shares = particles.surviving()
    assert shares.min() >= 1 / 16 and shares.max() <= 1 and shares.mean() < 1
    unweighted = Particles(3, 8, {"own": torch.zeros(3, 1, dtype=torch.float64)})
    assert unweighted.resample("own", 0) is None and unweighted.surviving().tolist() == [1, 1, 1]


def test_resampling_is_systematic() -> None:
    """Particle p gets floor or ceil of N w copies, images with enough effective particles stay as they are."""
    particles = Particles(2, 4, {"own": torch.tensor([[0.3], [0.3]], dtype=torch.float64)})
    particles.begin_level()
    particles.weigh(torch.tensor([0.7, 0.1, 0.1, 0.1, 0.25, 0.25, 0.25, 0.25], dtype=torch.float64).log())
    assert torch.allclose(particles.effective_sizes(), torch.tensor([1 / 0.52, 4.0], dtype=torch.float64))
    rows = particles.resample("own", 0)  # at 0.075, 0.325, 0.575 and 0.825 of the cumulative weights
    assert rows.tolist() == [0, 0, 0, 2, 4, 5, 6, 7]
    assert particles.origins.tolist() == rows.tolist()
    assert particles.surviving().tolist() == [0.5, 1.0]
    assert particles.log_weights[0].tolist() == [0, 0, 0, 0]
    assert particles.log_weights[1].exp().tolist() == pytest.approx([0.25] * 4)
