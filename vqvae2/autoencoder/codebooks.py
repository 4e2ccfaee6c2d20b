"""Codebook updates: k-means initialization, moving average (Oord et al. 2017, appendix A.1), revival of unused codes.

Random choices are functions of (seed, step, level, batch index) only, and all sums are taken over all processes,
so the codebooks are identical on every process.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.autoencoder.quantiser import Quantised, nearest_codes
from vqvae2.run.seeding import keyed_generator
from vqvae2.training.average import average_decay
from vqvae2.training.objective import Reduce

VECTORS_PER_CODE = 64  # feature vectors per code that k-means uses
KMEANS_ITERATIONS = 10
CHECKS = 64  # checks for unused codes per revival window
EARLY_SHARE = 64  # the window is at most 1/64 of the images seen so far: most codes become unused early in training
EMPTY = 1e-6  # a code with a smaller average count keeps its vector: there is nothing to average


def k_means(
    vectors: Tensor, k: int, generator: torch.Generator, iterations: int = KMEANS_ITERATIONS
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm: vectors (N, D) -> centers (k, D) and the number of vectors of each center, float (k,).

    Centers without vectors are replaced by random vectors.
    """
    order = torch.randperm(len(vectors), generator=generator)
    centres = vectors[order[torch.arange(k) % len(vectors)]]
    for iteration in range(iterations):
        counts, sums = count_and_sum(vectors, nearest_codes(vectors, centres), k)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = counts == 0
        if iteration + 1 < iterations:
            centres[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),), generator=generator)]
    centres[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),), generator=generator)]
    return centres, counts


def count_and_sum(vectors: Tensor, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Number and sum of the `vectors` (N, D) of each code, given their `codes` (N,): (k,) and (k, D)."""
    counts = torch.zeros(k, dtype=vectors.dtype, device=vectors.device)
    counts.index_add_(0, codes, torch.ones_like(codes, dtype=vectors.dtype))
    sums = torch.zeros(k, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return counts, sums.index_add_(0, codes, vectors)


class Picks(NamedTuple):
    """Which feature vectors to take from a global batch.

    Attributes:
        batch_indices: batch index of each vector's image, (count,).
        positions: position of each vector in the image's grid, in raster order, (count,).
    """

    batch_indices: Tensor
    positions: Tensor


def random_picks(count: int, batch_size: int, positions: int, generator: torch.Generator) -> Picks:
    """Draw `count` random feature vectors of a global batch, without replacement if the batch has that many.

    Args:
        count: number of vectors.
        batch_size: images of the global batch.
        positions: positions in the grid of each image.
        generator: CPU generator.
    """
    available = batch_size * positions
    if count <= available:
        flat = torch.randperm(available, generator=generator)[:count]
    else:
        flat = torch.randint(available, (count,), generator=generator)
    return Picks(flat // positions, flat % positions)


def take(picks: Picks, features: Tensor, batch_indices: Tensor, batch_size: int) -> Tensor:
    """The picked vectors in this process's `features` (B, D, H, W), zeros for those of other processes: (count, D)."""
    device = features.device
    row_of = torch.full((batch_size,), -1, device=device)
    row_of[batch_indices.to(device)] = torch.arange(len(batch_indices), device=device)
    rows, positions = row_of[picks.batch_indices.to(device)], picks.positions.to(device)
    here = rows >= 0
    vectors = rearrange(features, "b d h w -> b (h w) d")[rows.clamp(min=0), positions]
    return torch.where(here[:, None], vectors, 0)


class _Level:
    """Moving averages and usage of one level's codebook."""

    def __init__(self, codebook: nn.Parameter):
        self.codebook = codebook  # the parameter, not its data: moving the module replaces the data
        size = len(codebook)
        self.average_count = torch.zeros(size, dtype=codebook.dtype, device=codebook.device)
        self.average_sum = torch.zeros_like(codebook, requires_grad=False)
        self.unused_images = torch.zeros(size, dtype=codebook.dtype, device=codebook.device)  # images since last used
        self.clear()

    def clear(self) -> None:
        """Reset what was accumulated since the last update."""
        self.count = torch.zeros_like(self.average_count)
        self.sum = torch.zeros_like(self.average_sum)
        self.candidates = torch.zeros_like(self.average_sum)


class Codebooks:
    """Updates the codebooks during training: call `observe` after each forward pass and `update` once per step."""

    def __init__(self, autoencoder: Autoencoder, batch_size: int, seed: int, trained: bool = False):
        """Set up for a global batch of `batch_size` images.

        The codebooks of a `trained` autoencoder are not initialized by k-means, and change from the first step on as
        slowly as late in training: full decay, full revival window.
        """
        config = autoencoder.config
        self.autoencoder = autoencoder
        self.batch_size = batch_size
        self.seed = seed
        self.trained = trained
        self.ema = config.codebook_update == "ema"
        self.decay = config.ema_decay
        self.window_images = config.revival_window_images
        self.check_every = max(1, self.window_images // (batch_size * CHECKS))
        self.levels = [_Level(quantiser.codebook) for quantiser in autoencoder.quantisers]

    @torch.no_grad()
    def start(self, batches: Iterator[list[tuple[Tensor, Tensor]]], reduce: Reduce) -> None:
        """Initialize every codebook with the k-means centers of its level's features, and the moving averages.

        Levels are initialized coarsest first, because finer features depend on coarser codebooks. Trained codebooks are
        kept; their average counts are those of the features, plus one, so that rare codes stay close to their vectors.

        Args:
            batches: yields, for each global batch, this process's (images, batch_indices) of each accumulation step;
                read until there are enough features.
            reduce: sums a tensor over all processes.
        """
        read: list[list[tuple[Tensor, Tensor]]] = []
        for i, level in enumerate(self.levels):
            codebook_size = len(level.codebook)
            generator = keyed_generator(self.seed, "k-means", i)
            missing = VECTORS_PER_CODE * codebook_size
            drawn: list[Tensor] = []
            while missing > 0:
                if len(drawn) == len(read):
                    read.append(next(batches))
                vectors, positions = self._draw(read[len(drawn)], i, missing, generator)
                drawn.append(reduce(vectors).cpu())
                missing -= len(vectors)
            features = torch.cat(drawn)
            if self.trained:
                codes = nearest_codes(features, level.codebook.cpu())
                counts = count_and_sum(features, codes, codebook_size)[0] + 1
            else:
                centres, counts = k_means(features, codebook_size, generator)
                level.codebook.copy_(centres)
            level.average_count.copy_(counts * (self.batch_size * positions / counts.sum()))
            level.average_sum.copy_(level.codebook * level.average_count[:, None])

    def _draw(
        self, parts: list[tuple[Tensor, Tensor]], i: int, count: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Take up to `count` random feature vectors of level i from one global batch.

        Returns:
            The vectors (count, D), zeros for those of other processes, and the number of codes per image.
        """
        vectors: Tensor | float = 0.0
        picks = None
        for images, batch_indices in parts:
            features = self.autoencoder(images).quantised[i].features
            positions = features.shape[2] * features.shape[3]
            count = min(count, self.batch_size * positions)
            picks = picks or random_picks(count, self.batch_size, positions, generator)
            vectors = vectors + take(picks, features, batch_indices, self.batch_size)
        assert isinstance(vectors, Tensor)  # there is at least one part
        return vectors, positions

    @torch.no_grad()
    def observe(self, quantised: list[Quantised], batch_indices: Tensor, step: int) -> None:
        """Accumulate the features of one forward pass; `batch_indices` (B,): the batch index of each image."""
        for i, (level, result) in enumerate(zip(self.levels, quantised, strict=True)):
            flat = rearrange(result.features, "b d h w -> (b h w) d")
            count, total = count_and_sum(flat, result.codes.flatten(), len(level.codebook))
            level.count += count
            level.sum += total
            if self._revives(step):
                positions = result.codes[0].numel()
                generator = keyed_generator(self.seed, "revival", step, i)
                picks = random_picks(len(level.codebook), self.batch_size, positions, generator)
                level.candidates += take(picks, result.features, batch_indices, self.batch_size)

    @torch.no_grad()
    def update(self, step: int, applied: Tensor, reduce: Reduce) -> None:
        """End a step: sum over all processes, update the moving averages and revive codes unused over the window.

        Args:
            step: steps since the codebooks were initialized.
            applied: bool scalar on the device; if false, nothing changes.
            reduce: sums a tensor over all processes; called once.
        """
        revives = self._revives(step)
        parts = [t for x in self.levels for t in (x.count, x.sum, *([x.candidates] if revives else []))]
        summed = reduce(torch.cat([t.flatten() for t in parts])).split([t.numel() for t in parts])
        sums = iter(summed)
        for level in self.levels:
            level.count, level.sum = next(sums), next(sums).view_as(level.sum)
            unused = torch.where(level.count > 0, 0, level.unused_images + self.batch_size)
            _keep(level.unused_images, unused, applied)
            if self.ema:
                decay = self.decay if self.trained else average_decay(self.decay, step)
                self._move_average(level, decay, applied)
            if revives:
                self._revive(level, next(sums).view_as(level.codebook), step, applied)
            level.clear()

    def _move_average(self, level: _Level, decay: float, applied: Tensor) -> None:
        """N <- decay N + (1 - decay) n, m <- decay m + (1 - decay) sum, e = m / N, with a warm-up of the decay.

        Both averages start at the same step with the same decay, so their ratio needs no bias correction.
        """
        _keep(level.average_count, level.average_count.lerp(level.count, 1 - decay), applied)
        _keep(level.average_sum, level.average_sum.lerp(level.sum, 1 - decay), applied)
        count = level.average_count[:, None]
        mean = level.average_sum / count.clamp(min=EMPTY)
        _keep(level.codebook, torch.where(count > EMPTY, mean, level.codebook), applied)

    def _revive(self, level: _Level, candidates: Tensor, step: int, applied: Tensor) -> None:
        """Replace code vectors that were unused over the window with random features of this step."""
        seen = (step + 1) * self.batch_size
        window = self.window_images if self.trained else min(self.window_images, seen / EARLY_SHARE)
        dead = (level.unused_images >= window) & applied
        level.codebook.copy_(torch.where(dead[:, None], candidates, level.codebook))
        level.average_count.copy_(torch.where(dead, torch.ones_like(level.average_count), level.average_count))
        level.average_sum.copy_(torch.where(dead[:, None], candidates, level.average_sum))
        level.unused_images.copy_(torch.where(dead, 0, level.unused_images))

    def _revives(self, step: int) -> bool:
        return self.window_images > 0 and (step + 1) % self.check_every == 0

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs in addition to the codebooks."""
        return {
            f"{name}.{key}": getattr(level, key)
            for name, level in zip(self.autoencoder.names, self.levels, strict=True)
            for key in ("average_count", "average_sum", "unused_images")
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        for key, tensor in self.state().items():
            tensor.copy_(state[key])


def _keep(target: Tensor, value: Tensor, applied: Tensor) -> None:
    """Copy `value` into `target` if the step was applied."""
    target.copy_(torch.where(applied, value, target))
