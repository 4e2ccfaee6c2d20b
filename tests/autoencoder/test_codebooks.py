"""Codebook updates, compared with plain loops and between different splits of a global batch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from threading import Barrier
from typing import Any

import pytest
import torch

from vqvae2.autoencoder.artefact import build_autoencoder
from vqvae2.autoencoder.codebooks import Codebooks, k_means
from vqvae2.config import AutoencoderConfig, LevelConfig

APPLIED = torch.tensor(True)
LATE = 1000  # a step after the early phase, in which revival windows are shorter; a multiple of the 4-step windows
BATCH = 8


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """The `reduce` function of a single process."""
    return tensor


def codebooks(window_steps: int = 0, **options: Any) -> Codebooks:
    """Codebooks of an autoencoder with two levels, in float64."""
    config = AutoencoderConfig(
        [LevelConfig("top", 8, codebook_size=6, code_dim=2), LevelConfig("bottom", 4, codebook_size=9, code_dim=3)],
        hidden_channels=8,
        residual_channels=4,
        residual_layers=1,
        revival_window_images=window_steps * BATCH,
        **{"ema_decay": 0.9, **options},
    )
    return Codebooks(build_autoencoder(config, channels=3, seed=0).double(), BATCH, seed=3)


def fork(books: Codebooks, **options: Any) -> Codebooks:
    """A copy of the codebooks, restored as in a resumed run, with the given options."""
    other = codebooks(**options)
    other.autoencoder.load_state_dict(books.autoencoder.state_dict())
    other.load_state({name: tensor.clone() for name, tensor in books.state().items()})
    return other


def vectors(books: Codebooks) -> list[torch.Tensor]:
    """A copy of the code vectors of each level."""
    return [quantiser.codebook.detach().clone() for quantiser in books.autoencoder.quantisers]


def features(step: int, scale: float = 1.0) -> list[torch.Tensor]:
    """Random features of each level for a global batch."""
    generator = torch.Generator().manual_seed(step)
    grids = [(BATCH, 2, 2, 3), (BATCH, 3, 4, 6)]
    return [scale * torch.randn(grid, dtype=torch.float64, generator=generator) for grid in grids]


def observe(books: Codebooks, maps: list[torch.Tensor], step: int, images: slice = slice(None)) -> list[torch.Tensor]:
    """Run a forward pass on some images of a global batch and return the codes."""
    quantised = [q(x[images]) for q, x in zip(books.autoencoder.quantisers, maps, strict=True)]
    books.observe(quantised, torch.arange(BATCH)[images], step)
    return [x.codes for x in quantised]


def one_step(books: Codebooks, maps: list[torch.Tensor], step: int) -> list[torch.Tensor]:
    """Run a step on one process and return the codes."""
    codes = observe(books, maps, step)
    books.update(step, APPLIED, alone)
    return codes


def in_two_processes(work: Callable[[int, Callable[[torch.Tensor], torch.Tensor]], Any]) -> list[Any]:
    """Run `work(rank, reduce)` on two threads, where `reduce` sums the tensors of both, and return both results."""
    barrier = Barrier(2, timeout=60)
    held: dict[int, torch.Tensor] = {}

    def run(rank: int) -> Any:
        def reduce(tensor: torch.Tensor) -> torch.Tensor:
            held[rank] = tensor.clone()
            barrier.wait()
            total = held[0] + held[1]
            barrier.wait()
            return total

        try:
            return work(rank, reduce)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def assert_same(one: Codebooks, other: Codebooks) -> None:
    """Assert that code vectors and saved state are equal up to float64 rounding."""
    for a, b in zip([*vectors(one), *one.state().values()], [*vectors(other), *other.state().values()], strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_moving_average_is_the_papers() -> None:
    """Each step: N <- 0.9 N + 0.1 n, m <- 0.9 m + 0.1 sum, e = m / N; a code that was never used keeps its vector."""
    books = codebooks()
    expected = vectors(books)
    counts = [[0.0] * len(x) for x in expected]
    sums = [torch.zeros_like(x) for x in expected]
    for step in range(LATE, LATE + 5):
        maps = features(step)
        codes = one_step(books, maps, step)
        for level, (x, chosen) in enumerate(zip(maps, codes, strict=True)):
            flat = x.movedim(1, 3).reshape(-1, x.shape[1])
            for code in range(len(expected[level])):
                mine = flat[chosen.flatten() == code]
                counts[level][code] = 0.9 * counts[level][code] + 0.1 * len(mine)
                sums[level][code] = 0.9 * sums[level][code] + 0.1 * mine.sum(0)
                if counts[level][code] > 0:
                    expected[level][code] = sums[level][code] / counts[level][code]
    for e, moved in zip(expected, vectors(books), strict=True):
        assert torch.allclose(e, moved, rtol=1e-9)


def test_start_at_zero_counts_throws_nothing_far_away() -> None:
    """After the first step, a used code vector is the mean of its features, and an unused one has not changed."""
    books = codebooks()
    before = vectors(books)
    maps = features(0, scale=0.1)
    codes = one_step(books, maps, 0)
    unused = 0
    for x, chosen, old, new in zip(maps, codes, before, vectors(books), strict=True):
        flat = x.movedim(1, 3).reshape(-1, x.shape[1])
        for code in range(len(old)):
            mine = flat[chosen.flatten() == code]
            unused += len(mine) == 0
            assert torch.allclose(new[code], mine.mean(0) if len(mine) else old[code], rtol=1e-9)
    assert unused > 0


def test_code_unused_for_long_stays_finite() -> None:
    """A code that has been unused for a thousand steps keeps its vector, although its average count approaches 0."""
    books = codebooks(ema_decay=0.5)
    first = one_step(books, features(0), LATE)
    chosen = vectors(books)
    far = [torch.full_like(x, 50.0) for x in features(0)]
    for step in range(LATE + 1, LATE + 1100):
        one_step(books, far, step)
    for old, new, codes, x in zip(chosen, vectors(books), first, far, strict=True):
        taken = (new - x.mean()).abs().amax(1) < 1e-6
        assert taken.sum() == 1
        resting = ~taken & (torch.bincount(codes.flatten(), minlength=len(old)) > 0)
        assert resting.any() and torch.allclose(new[resting], old[resting], rtol=1e-4)


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_two_processes_do_what_one_does(update: str) -> None:
    """Two processes with half of the batch each have the same codebooks as one process with the whole batch."""
    whole, *halves = (codebooks(window_steps=4, codebook_update=update) for _ in range(3))
    before = vectors(whole)
    for step in range(LATE, LATE + 4):
        one_step(whole, features(step, 0.3), step)

    def work(rank: int, reduce: Callable) -> None:
        for step in range(LATE, LATE + 4):
            observe(halves[rank], features(step, 0.3), step, slice(rank, None, 2))
            halves[rank].update(step, APPLIED, reduce)

    in_two_processes(work)
    assert not torch.equal(before[1], vectors(whole)[1])
    for half in halves:
        assert_same(half, whole)
    assert all(torch.equal(a, b) for a, b in zip(vectors(halves[0]), vectors(halves[1]), strict=True))


def test_accumulated_batch_is_one_update() -> None:
    """A batch accumulated over four passes gives the same update as a single pass, with one reduction per step."""
    whole, parts = codebooks(window_steps=4), codebooks(window_steps=4)
    calls = []

    def reduce(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor)
        return tensor

    for step in range(LATE, LATE + 4):
        one_step(whole, features(step, 0.3), step)
        for i in range(0, BATCH, 2):
            observe(parts, features(step, 0.3), step, slice(i, i + 2))
        parts.update(step, APPLIED, reduce)
    assert len(calls) == 4
    assert_same(parts, whole)


def test_unused_codes_are_revived_after_the_window_and_only_then() -> None:
    """With a window of 4 steps, an unused code keeps its vector for 3 steps and is then set to a feature of the batch.

    Used codes are not affected.
    """
    books = codebooks(window_steps=4)
    for quantiser in books.autoencoder.quantisers:
        quantiser.codebook.data[4:] += 1000
    dead = [x[4:] for x in vectors(books)]
    for step in range(LATE, LATE + 4):
        for now, then in zip(vectors(books), dead, strict=True):
            assert torch.equal(now[4:], then)
        without = fork(books, window_steps=0)
        one_step(books, features(step), step)
        one_step(without, features(step), step)
    for revived, kept, x in zip(vectors(books), vectors(without), features(LATE + 3), strict=True):
        flat = x.movedim(1, 3).reshape(-1, x.shape[1])
        assert (torch.cdist(revived[4:], flat).min(1).values < 1e-5).all()
        assert torch.equal(revived[:4], kept[:4])
        assert len(revived[4:].unique(dim=0)) > 1


def test_window_is_short_in_the_beginning() -> None:
    """A code that is unused from the first step is revived long before the end of a window of 1000 steps."""
    books = codebooks(window_steps=1000)
    for quantiser in books.autoencoder.quantisers:
        quantiser.codebook.data[4:] += 1000
    for step in range(2 * books.check_every):
        one_step(books, features(step), step)
    assert all((x.abs() < 100).all() for x in vectors(books))


def test_code_used_once_in_the_window_is_not_revived() -> None:
    """A code that is used only in the first step of a window keeps its vector at the end of the window."""
    books = codebooks(window_steps=4)
    others = [torch.full_like(x, 50.0) for x in features(0)]
    first = one_step(books, features(LATE), LATE)
    used = [torch.bincount(codes.flatten(), minlength=n) > 0 for codes, n in zip(first, (6, 9), strict=True)]
    for step in range(LATE + 1, LATE + 3):
        one_step(books, others, step)
    before = vectors(books)
    one_step(books, others, LATE + 3)
    for old, new, mask in zip(before, vectors(books), used, strict=True):
        resting = mask & (old.abs().amax(1) < 10)  # the steps after the first moved one of the used codes
        assert resting.any() and torch.allclose(old[resting], new[resting], rtol=1e-9)


def test_revival_can_be_switched_off() -> None:
    """With a window of 0 images, an unused code keeps its vector."""
    books = codebooks(window_steps=0)
    before = vectors(books)
    far = [torch.full_like(x, 50.0) for x in features(0)]
    for step in range(20):
        one_step(books, far, step)
    for old, new in zip(before, vectors(books), strict=True):
        assert (old == new).all(1).sum() == len(old) - 1


@pytest.mark.parametrize("step", [0, LATE + 3])
def test_step_that_was_not_applied_changes_nothing(step: int) -> None:
    """A step with a non-finite loss changes neither code vectors nor state, even at the end of a revival window.

    The next step is not affected.
    """
    books = codebooks(window_steps=4)
    for earlier in range(step - 3, step):
        one_step(books, features(earlier), max(0, earlier))
    untouched = fork(books, window_steps=4)
    observe(books, [x * torch.nan for x in features(step)], step)
    books.update(step, torch.tensor(False), alone)
    for a, b in zip(
        [*vectors(books), *books.state().values()], [*vectors(untouched), *untouched.state().values()], strict=True
    ):
        assert torch.equal(a, b)
    one_step(books, features(99), step + 1)
    one_step(untouched, features(99), step + 1)
    assert_same(books, untouched)


def test_step_that_was_not_applied_right_after_the_start_changes_nothing() -> None:
    """The code vectors from k-means initialization stay bitwise equal."""
    books = codebooks()
    books = Codebooks(books.autoencoder.float(), BATCH, seed=3)
    books.start(repeat([(some_images(), torch.arange(BATCH))]), alone)
    before = vectors(books)
    observe(books, [x.float() * torch.nan for x in features(0)], 0)
    books.update(0, torch.tensor(False), alone)
    assert all(torch.equal(a, b) for a, b in zip(before, vectors(books), strict=True))


def test_state_carries_on_in_the_middle_of_a_window() -> None:
    """Codebooks restored from the weights and `state` continue exactly like uninterrupted ones, including revival."""
    books = codebooks(window_steps=4)
    for step in range(LATE, LATE + 2):
        one_step(books, features(step, 0.3), step)
    other = fork(books, window_steps=4)
    for step in range(LATE + 2, LATE + 9):
        one_step(books, features(step, 0.3), step)
        one_step(other, features(step, 0.3), step)
    for a, b in zip(vectors(books), vectors(other), strict=True):
        assert torch.equal(a, b)


def some_images() -> torch.Tensor:
    """A global batch of random images."""
    return torch.randint(256, (BATCH, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def test_start_puts_the_codebooks_among_the_features() -> None:
    """After `start`, the quantization error of each level is well below the variance of its features.

    Features of the finer level are computed with the codes of the coarser level.
    """
    books = codebooks()
    books.start(repeat([(some_images(), torch.arange(BATCH))]), alone)
    for result in books.autoencoder(some_images()).quantised:
        variance = result.features.transpose(0, 1).flatten(1).var(1, correction=0).mean()
        assert result.commitment_loss < 0.6 * variance
        assert len(result.codes.unique()) > 3


def test_start_is_the_same_however_the_batch_is_split() -> None:
    """Two processes with two accumulation steps each get the same initial codebooks as one process with one step."""
    whole, *halves = (codebooks() for _ in range(3))
    images, places = some_images(), torch.arange(BATCH)
    whole.start(repeat([(images, places)]), alone)

    def work(rank: int, reduce: Callable) -> None:
        mine = [(images[i::4], places[i::4]) for i in (rank, rank + 2)]
        halves[rank].start(repeat(mine), reduce)

    in_two_processes(work)
    for half in halves:
        assert_same(half, whole)


def test_trained_codebooks_are_kept_and_move_slowly() -> None:
    """A trained autoencoder keeps its code vectors at the start; the first step moves them with the full decay.

    A code that no feature is near to has a count of its own, so it is not replaced by the features of one batch.
    """
    books = Codebooks(codebooks().autoencoder, BATCH, seed=3, trained=True)
    before = vectors(books)
    images = torch.randint(0, 256, (BATCH, 3, 16, 24), dtype=torch.uint8)
    books.autoencoder.double()
    books.start(repeat([(images.double() / 127.5 - 1, torch.arange(BATCH))]), alone)
    assert all(torch.equal(x, y) for x, y in zip(vectors(books), before, strict=True))
    counts = [level.average_count.clone() for level in books.levels]
    positions = [6, 24]
    for count, grid in zip(counts, positions, strict=True):
        assert count.min() > 0 and count.sum() == pytest.approx(BATCH * grid)
    maps = features(0)
    codes = one_step(books, maps, 0)
    for x, old, count, chosen, now in zip(maps, before, counts, codes, vectors(books), strict=True):
        flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        for k in range(len(old)):
            mine = flat[chosen.flatten() == k]
            mean = (0.9 * count[k] * old[k] + 0.1 * mine.sum(0)) / (0.9 * count[k] + 0.1 * len(mine))
            assert torch.allclose(now[k], mean)


def test_trained_codes_have_the_whole_window_to_be_used() -> None:
    """Codes of a trained autoencoder that the first steps do not use are not revived before the window is over."""
    books = codebooks(window_steps=64)
    trained = Codebooks(books.autoencoder, BATCH, seed=3, trained=True)
    far = [torch.full_like(x, 50.0) for x in vectors(books)]
    with torch.no_grad():
        for level, x in zip(trained.levels, far, strict=True):
            level.codebook[1:] = x[1:]
            level.average_count.fill_(1.0)
            level.average_sum.copy_(level.codebook)
    for step in range(63):
        one_step(trained, features(step), step)
        assert all((x[1:] > 49).all() for x in vectors(trained))
    one_step(trained, features(63), 63)
    assert not any((x[1:] > 49).any() for x in vectors(trained))


@pytest.mark.parametrize("seed", range(4))
def test_k_means_finds_clusters(seed: int) -> None:
    """The centers of two distant clusters are their means, and the counts are their sizes."""
    torch.manual_seed(seed)
    small, large = torch.randn(30, 3, dtype=torch.float64), torch.randn(70, 3, dtype=torch.float64) + 100
    mixed = torch.cat([small, large])[torch.randperm(100)]
    centres, counts = k_means(mixed, 2, torch.Generator().manual_seed(seed))
    order = counts.argsort()
    assert counts[order].tolist() == [30, 70]
    assert torch.allclose(centres[order], torch.stack([small.mean(0), large.mean(0)]))


def test_k_means_of_fewer_vectors_than_codes() -> None:
    """With fewer vectors than codes, every center is one of the vectors, and every vector has a center."""
    few = torch.randn(3, 2, dtype=torch.float64)
    centres, counts = k_means(few, 10, torch.Generator().manual_seed(0))
    distances = torch.cdist(centres, few)
    assert distances.min(1).values.max() < 1e-7
    assert distances.min(0).values.max() < 1e-7
    assert counts.sum() == 3
