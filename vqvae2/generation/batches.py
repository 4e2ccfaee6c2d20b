"""Codes of one batch of images, each from random numbers of its own, with or without particles."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from vqvae2.prior.kept import Kept
from vqvae2.prior.particles import Particles
from vqvae2.prior.prior import Prior
from vqvae2.prior.sampling import Controls, image_uniforms, sample_levels
from vqvae2.prior.waves import num_waves
from vqvae2.run.precision import widest_float
from vqvae2.run.seeding import keyed_generator

CodesSoFar = Callable[[], dict[str, Tensor]]


def sample_batch(
    priors: dict[str, Prior],
    indices: Sequence[int],
    labels: Tensor | None,
    controls: dict[str, Controls],
    kept: dict[str, Kept],
    seed: int,
    num_particles: int,
    device: torch.device,
    progress: Callable[[int], object],
    watch: Callable[[CodesSoFar], object],
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Sample the codes of B images; image i depends only on (seed, i) and the other arguments.

    Args:
        priors: the prior of each level, coarsest first.
        indices: number of each image.
        labels: class index of each image, (B,), -1 for the unconditional model; None: there are no classes.
        controls: temperature and the like of each level.
        kept: codes of one image or of B images that are kept, by level.
        seed: seed of the random numbers.
        num_particles: particles per image, 1 or more.
        device: device of the priors.
        progress: called with the number of codes sampled since the last call.
        watch: called at every step with a function that returns the codes so far, of the first particle of each image.

    Returns:
        The codes (B, h, w) of each level, and the share of each image's first particles that have descendants at the
        end, (B,); None with one particle.
    """
    uniforms = {}
    for name, prior in priors.items():
        positions = prior.grid.height * prior.grid.width
        rows = [image_uniforms(seed, i, name, positions, p) for i in indices for p in range(num_particles)]
        uniforms[name] = torch.stack(rows).to(device, widest_float(device))

    def watch_first(codes_so_far: CodesSoFar) -> None:
        watch(lambda: {name: x[::num_particles] for name, x in codes_so_far().items()})

    sample = partial(sample_levels, priors, uniforms, progress=progress, watch=watch_first)
    if num_particles == 1:
        return sample(labels, controls, kept), None
    labels = None if labels is None else labels.repeat_interleave(num_particles)
    kept = {
        name: x if len(x.codes) == 1 else x._replace(codes=x.codes.repeat_interleave(num_particles, dim=0))
        for name, x in kept.items()
    }
    resampling = {
        name: _uniforms(seed, "resample", indices, name, num_waves(prior), device) for name, prior in priors.items()
    }
    particles = Particles(len(indices), num_particles, resampling)
    codes = sample(labels, controls, kept, particles=particles)
    chosen = particles.choose(_uniforms(seed, "choose", indices, "", 1, device)[:, 0])
    return {name: x[chosen] for name, x in codes.items()}, particles.surviving().cpu()


def _uniforms(seed: int, what: str, indices: Sequence[int], level: str, count: int, device: torch.device) -> Tensor:
    """Uniform numbers (images, count) that depend on the seed, the image's number and the level only."""
    generators = (keyed_generator(seed, what, i, level) for i in indices)
    rows = [torch.rand(count, dtype=torch.float64, generator=x) for x in generators]
    return torch.stack(rows).to(device, widest_float(device))
