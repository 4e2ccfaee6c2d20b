"""Temperature, top-k, top-p, guidance and sampling, compared with simple reference loops."""

import pytest
import torch

from tests.prior.priors import some_codes, tiny_prior
from vqvae2.prior.kept import Kept
from vqvae2.prior.prior import Prior
from vqvae2.prior.sampling import Controls, image_uniforms, restrict, sample_categorical, sample_codes


def random_logits(rows: int = 20, codes: int = 9) -> torch.Tensor:
    return 2 * torch.randn(rows, codes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def allowed(logits: torch.Tensor, controls: Controls) -> list[list[int]]:
    """For each row, the codes that `restrict` does not mask."""
    return [row.isfinite().nonzero().flatten().tolist() for row in restrict(logits, controls)]


def uniforms_of(prior: Prior, images: range, seed: int = 0) -> torch.Tensor:
    positions = prior.grid.height * prior.grid.width
    return torch.stack([image_uniforms(seed, i, "own", positions) for i in images])


def whole_grid_sample(
    prior: Prior,
    uniforms: torch.Tensor,
    coarser: dict | None,
    labels: torch.Tensor | None,
    guidance: float | None,
    kept: Kept | None = None,
):
    """Reference for `sample_codes`: codes (B, H, W), with a full forward pass for each position."""
    height, width = prior.grid.height, prior.grid.width
    codes = torch.zeros(len(uniforms), height, width, dtype=torch.long)
    for position in range(height * width):
        i, j = divmod(position, width)
        if kept is not None and kept.mask[i, j]:
            codes[:, i, j] = kept.codes[:, i, j]
            continue
        logits = prior(codes, coarser, labels)[:, :, i, j]
        if guidance is not None:
            nothing = prior(codes, coarser, None)[:, :, i, j]
            logits = nothing + guidance * (logits - nothing)
        for b, probabilities in enumerate(logits.softmax(1).tolist()):
            total, code = 0.0, -1
            while total <= uniforms[b, position]:
                code += 1
                total += probabilities[code]
            codes[b, i, j] = code
    return codes


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature: float) -> None:
    """The probabilities are raised to the power 1 / temperature and normalized."""
    logits = random_logits()
    powers = logits.softmax(1) ** (1 / temperature)
    restricted = restrict(logits, Controls(temperature=temperature))
    assert torch.allclose(restricted.softmax(1), powers / powers.sum(1, keepdim=True))


@pytest.mark.parametrize("top_k", [1, 3, 9, 20])
def test_top_k_keeps_the_likeliest(top_k: int) -> None:
    """Only the k largest logits remain, unchanged; a k above the codebook size keeps all."""
    logits = random_logits()
    expected = [sorted(sorted(range(9), key=lambda code: -row[code])[:top_k]) for row in logits.tolist()]
    assert allowed(logits, Controls(top_k=top_k)) == expected
    restricted = restrict(logits, Controls(top_k=top_k))
    assert torch.equal(restricted[restricted.isfinite()], logits[restricted.isfinite()])


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_with_that_probability(top_p: float) -> None:
    """The most likely codes are kept until their total probability reaches top_p; at least one code is kept."""
    logits = random_logits()
    expected = []
    for row in logits.softmax(1).tolist():
        kept, total = [], 0.0
        for code in sorted(range(9), key=lambda code: -row[code]):
            if total >= top_p:
                break
            kept.append(code)
            total += row[code]
        expected.append(sorted(kept))
    assert allowed(logits, Controls(top_p=top_p)) == expected
    assert top_p != 0.9 or 1 < sum(map(len, expected)) / len(expected) < 9


def test_top_p_is_of_what_temperature_and_top_k_leave() -> None:
    """top_p applies to the probabilities after temperature and top_k.

    Of the probabilities 0.4, 0.3, 0.2 and 0.1, top_k 2 leaves 4/7 and 3/7, so that top_p 0.5 keeps only the first code.
    """
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    assert allowed(logits, Controls(top_p=0.5)) == [[0, 1]]
    assert allowed(logits, Controls(top_k=2, top_p=0.5)) == [[0]]
    assert allowed(logits, Controls(temperature=0.5, top_p=0.5)) == [[0]]


def test_draw_follows_the_probabilities() -> None:
    """With evenly spaced uniform numbers, the frequency of each code equals its probability."""
    logits = random_logits(rows=1, codes=6)
    logits[0, 2] = -torch.inf
    count = 10_000
    codes = sample_categorical(logits.expand(count, -1), (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    frequencies = torch.bincount(codes, minlength=6) / count
    assert torch.allclose(frequencies.double(), logits.softmax(1)[0], atol=1.5 / count)
    assert torch.equal(codes, codes.sort().values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_draw_never_gives_a_forbidden_code(dtype: torch.dtype) -> None:
    """Masked codes are never sampled, even for the smallest and largest uniform numbers.

    Masked codes are at both ends and in between.
    """
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2000, 40, generator=generator)).to(dtype)
    forbidden = torch.rand(2000, 40, generator=generator) < 0.7
    forbidden[:, [0, 39]] = True
    forbidden[:, 20] = False
    logits = logits.masked_fill(forbidden, -torch.inf)
    for uniform in (0.0, 5e-324, 0.5, 1 - 2**-53):
        codes = sample_categorical(logits, torch.full((2000,), uniform, dtype=torch.float64))
        assert not forbidden.gather(1, codes[:, None]).any()


def test_uniform_numbers_depend_on_seed_image_and_level_alone() -> None:
    """The same seed, image and level give the same uniform numbers; another seed, image or level gives different ones.

    All are float64 in [0, 1).
    """
    first = image_uniforms(1, 2, "top", 50)
    assert torch.equal(first, image_uniforms(1, 2, "top", 50))
    for other in ((2, 2, "top"), (1, 3, "top"), (1, 2, "bottom")):
        assert not (first == image_uniforms(*other, 50)).any()
    assert first.dtype == torch.float64 and first.min() >= 0 and first.max() < 1


PRIORS = [
    {"attention_layers": 1, "classes": 3},
    {"coarser": (2,), "conditioning_layers": 1, "classes": 3, "kernel_size": 5},
    {"output_layers": 1},
]


@pytest.mark.parametrize("options", PRIORS, ids=str)
def test_codes_are_those_of_a_full_pass_for_each(options: dict) -> None:
    """In float64, sampling with the cache gives the same codes as a full forward pass for each position."""
    prior = tiny_prior((4, 4), **options)
    _, coarser, labels = some_codes(prior, batch=3)
    uniforms = uniforms_of(prior, range(3))
    codes = sample_codes(prior, uniforms, coarser, labels)
    assert torch.equal(codes, whole_grid_sample(prior, uniforms, coarser, labels, guidance=None))
    assert len(codes.unique()) == 5


@pytest.mark.parametrize("options", PRIORS, ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_kept_codes_stay_and_the_rest_is_drawn_given_them(options: dict, shared: bool) -> None:
    """Kept codes are unchanged, and the others are sampled conditioned on them, as in the reference.

    Each image has its own kept codes, or all images share those of one image.
    """
    prior = tiny_prior((4, 4), **options)
    own, coarser, labels = some_codes(prior, batch=24)
    uniforms = uniforms_of(prior, range(24))
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    kept = Kept(own[:1] if shared else own, mask)
    codes = sample_codes(prior, uniforms, coarser, labels, kept=kept)
    assert (codes == kept.codes)[:, mask].all()
    assert torch.equal(codes, whole_grid_sample(prior, uniforms, coarser, labels, None, kept))
    assert not torch.equal(codes[:, ~mask], sample_codes(prior, uniforms, coarser, labels)[:, ~mask])
    everything = Kept(kept.codes, torch.ones_like(mask))
    assert torch.equal(sample_codes(prior, uniforms, coarser, labels, kept=everything), kept.codes.expand(24, 4, 4))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_goes_from_the_unconditional_logits_towards_the_conditional_ones(guidance: float) -> None:
    """The logits are unconditional + guidance x (conditional - unconditional).

    A guidance of 1 equals conditional sampling, and 0 equals unconditional sampling.
    """
    prior = tiny_prior((4, 4), classes=3, coarser=(2,))
    _, coarser, _ = some_codes(prior, batch=8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    uniforms = uniforms_of(prior, range(8))
    codes = sample_codes(prior, uniforms, coarser, labels, Controls(guidance=guidance))
    assert torch.equal(codes, whole_grid_sample(prior, uniforms, coarser, labels, guidance))
    assert torch.equal(codes, sample_codes(prior, uniforms, coarser, labels)) == (guidance == 1)
    assert torch.equal(codes, sample_codes(prior, uniforms, coarser, None)) == (guidance == 0)


@pytest.mark.parametrize("options", PRIORS, ids=str)
def test_codes_of_an_image_do_not_depend_on_the_batch(options: dict) -> None:
    """In float64, an image gets the same codes alone, in another order or in a larger batch."""
    prior = tiny_prior((4, 6), **options)
    _, coarser, labels = some_codes(prior, batch=5)
    uniforms = uniforms_of(prior, range(5))

    def sample(images: list[int]) -> torch.Tensor:
        some = coarser and {name: codes[images] for name, codes in coarser.items()}
        return sample_codes(
            prior, uniforms[images], some, None if labels is None else labels[images], Controls(0.8, 4, 0.95)
        )

    together = sample([0, 1, 2, 3, 4])
    assert len(together.flatten(1).unique(dim=0)) == 5
    assert torch.equal(sample([3, 0, 4]), together[[3, 0, 4]])
    for i in range(5):
        assert torch.equal(sample([i])[0], together[i])


def test_controls_hold_while_sampling() -> None:
    """With top_k 1, the most likely code is sampled at every position; progress adds up to the number of codes."""
    prior = tiny_prior((4, 5))
    done: list[int] = []
    codes = sample_codes(prior, uniforms_of(prior, range(2)), controls=Controls(top_k=1), progress=done.append)
    with torch.inference_mode():
        assert torch.equal(codes, prior(codes).argmax(1))
    assert sum(done) == 20


@pytest.mark.parametrize("options", PRIORS, ids=str)
def test_codes_so_far_are_those_of_the_waves_so_far(options: dict) -> None:
    """After each wave, the codes so far are the final ones where they are kept or sampled and -1 elsewhere."""
    prior = tiny_prior((4, 6), right_reach=1, **options)
    own, coarser, labels = some_codes(prior, batch=3)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[3, 1:3] = True
    seen: list[torch.Tensor] = []
    arguments = (prior, uniforms_of(prior, range(3)), coarser, labels, Controls(), Kept(own, mask))
    codes = sample_codes(*arguments, watch=lambda codes_so_far: seen.append(codes_so_far()))
    assert torch.equal(codes, sample_codes(*arguments))
    stride = prior.stride()
    assert len(seen) == 6 + 3 * stride
    for wave, partly in enumerate(seen):
        known = torch.tensor([[mask[i, j] or j + i * stride <= wave for j in range(6)] for i in range(4)])
        assert torch.equal(partly, torch.where(known, codes, -1))


def test_an_exception_of_watch_ends_the_sampling() -> None:
    prior, calls = tiny_prior((4, 5)), []

    def stop(codes_so_far: object) -> None:
        calls.append(codes_so_far)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sample_codes(prior, uniforms_of(prior, range(1)), watch=stop)
    assert len(calls) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", PRIORS, ids=str)
def test_captured_graph_draws_what_single_kernels_draw(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, sampling with a captured graph gives the same codes as without, also with guidance and kept codes."""
    prior = tiny_prior((4, 6), **options).cuda()
    own, coarser, labels = some_codes(prior, batch=4)
    coarser = coarser and {name: codes.cuda() for name, codes in coarser.items()}
    labels = None if labels is None else labels.cuda()
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1, 2:4] = True
    controls = Controls(guidance=1.0 if labels is None else 2.0)
    arguments = (prior, uniforms_of(prior, range(4)).cuda(), coarser, labels, controls, Kept(own, mask))
    captured = sample_codes(*arguments)
    monkeypatch.setattr("vqvae2.prior.sampling.capture", lambda call: call)
    assert torch.equal(captured, sample_codes(*arguments))
    assert len(captured.unique()) == 5
