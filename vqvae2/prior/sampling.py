"""Ancestral sampling: each code is sampled from the prior's distribution given the codes before it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.prior.kept import Kept
from vqvae2.prior.prior import Cache, Prior
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


def image_uniforms(seed: int, image: int, level: str, num_positions: int) -> Tensor:
    """A uniform number in [0, 1) per position, (num_positions,), a function of (seed, image, level, position) only."""
    return torch.rand(num_positions, dtype=torch.float64, generator=keyed_generator(seed, "sample", image, level))


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


@torch.inference_mode()
def sample_codes(
    prior: Prior,
    uniforms: Tensor,
    coarser: dict[str, Tensor] | None = None,
    labels: Tensor | None = None,
    controls: Controls = Controls(),
    kept: Kept | None = None,
    progress: Callable[[int], object] = lambda codes: None,
) -> Tensor:
    """Sample the codes of one level: (B, H, W) int64.

    Args:
        prior: the prior of the level, in eval mode.
        uniforms: (B, H * W) float64, one number per code.
        coarser: codes (B, h, w) of each coarser level by name; None for the coarsest level.
        labels: (B,) int64; None: no labels.
        controls: temperature, top-k, top-p and guidance.
        kept: codes that are kept; the codes after them are sampled given the kept ones. None: sample all codes.
        progress: called with the number of codes per image that were completed since the last call.
    """
    batch, device = len(uniforms), uniforms.device
    height, width = prior.grid.height, prior.grid.width
    codes = torch.zeros(batch, height * width, dtype=torch.long, device=device)
    is_kept = torch.zeros(height * width, dtype=torch.bool, device=device)
    if kept is not None:
        codes.copy_(kept.codes.flatten(1))
        is_kept.copy_(kept.mask.flatten())
    if is_kept.all():
        progress(height * width)
        return codes.view(batch, height, width)
    caches = [Cache(prior, batch, coarser, labels)]
    if controls.guidance != 1:
        caches.append(Cache(prior, batch, coarser, None))
    position = caches[0].position

    def sample_next() -> None:
        logits = [cache.logits().to(uniforms.dtype) for cache in caches]
        mixed = logits[0] if len(logits) == 1 else logits[1].lerp(logits[0], controls.guidance)
        sampled = sample_categorical(restrict(mixed, controls), uniforms.index_select(1, position)[:, 0])
        given = codes.index_select(1, position)[:, 0]
        chosen = torch.where(is_kept.index_select(0, position), given, sampled)
        codes.index_copy_(1, position, chosen[:, None])
        for cache in caches:
            cache.write(chosen)

    def begin_row(row: int) -> None:
        for cache in caches:
            cache.begin_row(row)

    if uniforms.is_cuda:
        begin_row(0)  # the call before the capture reads these buffers
        sample_next = capture(sample_next)
    for row in range(height):
        begin_row(row)
        for _ in range(width):
            sample_next()
        progress(width)
    return codes.view(batch, height, width)


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
