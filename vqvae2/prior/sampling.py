"""Ancestral sampling: each code is sampled from the prior's distribution given the codes before it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2.prior.cache import Cache
from vqvae2.prior.kept import Kept
from vqvae2.prior.particles import Particles
from vqvae2.prior.prior import Prior
from vqvae2.prior.waves import Wavefront
from vqvae2.run.precision import widest_float
from vqvae2.run.seeding import keyed_generator


@dataclass(frozen=True)
class Controls:
    """How codes are sampled from the logits.

    Attributes:
        temperature: divides the logits; values below 1 give more probable, less varied codes.
        top_k: sample only from the k most probable codes; None: from all.
        top_p: sample only from the most probable codes whose total probability reaches this value; None: from all.
        guidance: scale of classifier-free guidance (Ho and Salimans 2022, equation 6 with w = guidance - 1); 1: no
            guidance; values above 1 increase the influence of the label.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0


def image_uniforms(seed: int, image: int, level: str, num_positions: int, particle: int = 0) -> Tensor:
    """A uniform number in [0, 1) per position, (num_positions,), a function of the arguments and the position only."""
    key = (seed, "sample", image, level) + ((particle,) if particle else ())
    return torch.rand(num_positions, dtype=torch.float64, generator=keyed_generator(*key))


def restrict(logits: Tensor, controls: Controls) -> Tensor:
    """Apply temperature, top-k and top-p to logits (B, K); excluded codes get -inf."""
    logits = logits / controls.temperature
    if controls.top_k is not None and controls.top_k < logits.shape[1]:
        kept = logits.topk(controls.top_k).indices
        logits = torch.full_like(logits, -torch.inf).scatter(1, kept, logits.gather(1, kept))
    if controls.top_p is not None and controls.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(1)
        before = probabilities.cumsum(1) - probabilities  # total of more probable codes; the first is always kept
        unlikely = torch.zeros_like(before, dtype=torch.bool).scatter_(1, order, before >= controls.top_p)
        logits = logits.masked_fill(unlikely, -torch.inf)
    return logits


def sample_categorical(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Sample codes (B,) by inverting the cumulative probabilities of `logits` (B, K) at `uniforms` (B,)."""
    wide = widest_float(logits.device)
    cumulative = logits.to(wide).softmax(1).cumsum(1)
    uniforms = uniforms.to(wide).clamp(max=1 - torch.finfo(wide).eps / 2)  # float32 rounds the highest ones to 1
    return torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]


def sample_levels(
    priors: dict[str, Prior],
    uniforms: dict[str, Tensor],
    labels: Tensor | None,
    controls: dict[str, Controls],
    kept: dict[str, Kept],
    progress: Callable[[int], object] = lambda codes: None,
    particles: Particles | None = None,
    watch: Callable[[Callable[[], dict[str, Tensor]]], object] = lambda codes_so_far: None,
) -> dict[str, Tensor]:
    """Sample the codes of all levels, (B, H, W) int64 by name; arguments as for `sample_codes`, by level.

    With particles, row r of the result is particle r at the end, with the codes of its ancestors.
    """
    codes: dict[str, Tensor] = {}

    def joined(name: str, own: Tensor) -> dict[str, Tensor]:
        if particles is None:
            return {**codes, name: own}
        return {**{coarser: x[particles.origins] for coarser, x in codes.items()}, name: own}

    def watch_level(name: str, codes_so_far: Callable[[], Tensor]) -> None:
        watch(lambda: joined(name, codes_so_far()))

    for name, prior in priors.items():
        own = sample_codes(
            prior,
            uniforms[name],
            codes or None,
            labels,
            controls[name],
            kept.get(name),
            progress,
            particles,
            partial(watch_level, name),
        )
        codes = joined(name, own)
    return codes


@torch.inference_mode()
def sample_codes(
    prior: Prior,
    uniforms: Tensor,
    coarser: dict[str, Tensor] | None = None,
    labels: Tensor | None = None,
    controls: Controls = Controls(),
    kept: Kept | None = None,
    progress: Callable[[int], object] = lambda codes: None,
    particles: Particles | None = None,
    watch: Callable[[Callable[[], Tensor]], object] = lambda codes_so_far: None,
) -> Tensor:
    """Sample the codes of one level: (B, H, W) int64.

    With particles, B is images x particles. They are weighted by the probabilities of the kept codes, with temperature
    and guidance but without top-k and top-p, and resampled. Use `particles.origins` to reorder the coarser codes.

    Args:
        prior: the prior of the level, in eval mode.
        uniforms: (B, H * W) float64, one number per code.
        coarser: codes (B, h, w) of each coarser level by name; None for the coarsest level.
        labels: (B,) int64; None: no labels.
        controls: temperature, top-k, top-p and guidance.
        kept: codes that are kept; the codes after them are sampled given the kept ones. None: sample all codes.
        progress: called with the number of codes per image that were completed since the last call.
        particles: the particles to weigh and resample; None: the kept codes do not affect the codes before them.
        watch: called after each wave with a function that returns the codes so far, (B, H, W), -1 where they are not
            sampled yet. It must be called before `watch` returns. An exception of `watch` ends the sampling.
    """
    batch, device = len(uniforms), uniforms.device
    height, width = prior.grid.height, prior.grid.width
    outside = 1  # rows in flight outside the grid read and write one more position
    codes = torch.zeros(batch, height * width + outside, dtype=torch.long, device=device)
    is_kept = torch.zeros(height * width + outside, dtype=torch.bool, device=device)
    if kept is not None:
        codes[:, :-outside] = kept.codes.flatten(1)
        is_kept[:-outside] = kept.mask.flatten()
    if particles is not None:
        particles.begin_level()
    if is_kept[:-outside].all() and particles is None:
        progress(height * width)
        return codes[:, :-outside].view(batch, height, width)
    uniforms = F.pad(uniforms, (0, outside))
    front = Wavefront(prior, device)
    caches = [Cache(prior, front, batch, coarser, labels)]
    if controls.guidance != 1:
        caches.append(Cache(prior, front, batch, coarser, None))

    def sample_wave() -> None:
        front.update()
        chosen = codes[:, front.positions]  # (B, N)
        if front.num_codes > 0:
            logits = [cache.logits().to(uniforms.dtype) for cache in caches]  # (B, N, K) each
            mixed = logits[0] if len(logits) == 1 else logits[1].lerp(logits[0], controls.guidance)
            if particles is not None:
                log_probabilities = (mixed / controls.temperature).log_softmax(2).gather(2, chosen[..., None])[..., 0]
                particles.weigh(torch.where(is_kept[front.positions], log_probabilities, 0.0).sum(1))
            restricted = restrict(mixed.flatten(0, 1), controls)
            sampled = sample_categorical(restricted, uniforms[:, front.positions].flatten()).view(batch, -1)  # (B, N)
            chosen = torch.where(is_kept[front.positions], chosen, sampled)
            codes.index_copy_(1, front.positions, chosen)
        for cache in caches:
            cache.write(chosen)
        front.wave += 1

    def codes_so_far(wave: int) -> Tensor:
        known = is_kept[:-outside] | front.finished(wave)
        return torch.where(known, codes[:, :-outside], -1).view(batch, height, width)

    if uniforms.is_cuda:
        weights = None if particles is None else particles.log_weights.clone()
        sample_wave = capture(sample_wave)
        front.begin(0)  # the capture has sampled the first wave
        if particles is not None and weights is not None:
            particles.log_weights.copy_(weights)
    for wave in range(front.num_waves):
        if not uniforms.is_cuda:
            front.begin(wave)
        sample_wave()
        if particles is not None and (rows := particles.resample(prior.grid.name, wave)) is not None:
            codes.copy_(codes[rows])
            for cache in caches:
                cache.reorder(rows)
        progress(front.codes_in(wave))
        watch(partial(codes_so_far, wave))
    return codes[:, :-outside].view(batch, height, width)


def capture(call: Callable[[], None]) -> Callable[[], None]:
    """Capture `call` as a CUDA graph, so that several hundred kernel launches become one.

    `call` runs once before the capture, because its kernels do some setup on first use.
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
