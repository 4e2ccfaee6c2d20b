"""Logits computed one code at a time with a cache, compared with the forward pass of the whole grid."""

from typing import Any

import pytest
import torch

from tests.prior.priors import some_codes, tiny_prior
from vqvae2.prior.cache import Cache
from vqvae2.prior.prior import Prior
from vqvae2.prior.waves import Wavefront

PRIORS = [
    {},
    {"layers": 1},
    {"kernel_size": 5, "layers": 3},
    {"kernel_size": 7, "grid": (3, 4)},
    {"grid": (1, 5)},
    {"grid": (5, 1), "attention_layers": 1},
    {"attention_layers": 1},
    {"layers": 1, "attention_layers": 1},
    {"layers": 4, "attention_layers": 2, "attention_heads": 4, "output_layers": 2, "classes": 3},
    {"layers": 2, "attention_layers": 2, "kernel_size": 5, "grid": (4, 7)},
    {"output_layers": 1, "classes": 3, "grid": (4, 7)},
    {"coarser": (2,), "conditioning_layers": 1},
    {"coarser": (4, 2), "grid": (4, 8), "conditioning_layers": 2, "classes": 3, "kernel_size": 5, "layers": 3},
    {"coarser": (2, 1), "attention_layers": 1, "classes": 3},
]


@torch.no_grad()
def incremental(prior: Prior, codes: torch.Tensor, coarser: dict | None, labels: torch.Tensor | None) -> torch.Tensor:
    """Return the logits (B, K, H, W) from a new cache to which the codes are written wave by wave."""
    front = Wavefront(prior, torch.device("cpu"))
    return written(Cache(prior, front, len(codes), coarser, labels), codes)


@torch.no_grad()
def written(cache: Cache, codes: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, K, H, W) from a cache to which the codes are written wave by wave."""
    front, outside = cache.front, torch.zeros(len(codes), 1, dtype=torch.long)
    given = torch.cat([codes.flatten(1), outside], dim=1)
    logits = torch.full((len(codes), given.shape[1], cache.prior.grid.codebook_size), torch.nan)
    logits = logits.to(cache.position_embedding.dtype)
    for wave in range(front.num_waves):
        front.begin(wave)
        front.update()
        assert int(front.inside.sum()) == front.codes_in(wave)
        if front.num_codes > 0:
            logits[:, front.positions] = cache.logits()
        cache.write(given[:, front.positions])
    return logits[:, :-1].transpose(1, 2).unflatten(2, codes.shape[1:])


TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}  # bfloat16 has 3 digits, logits reach 5


@pytest.mark.parametrize(
    ("dtype", "right_reach"),
    [
        *((torch.float64, right_reach) for right_reach in (None, 0, 1, 2, 4)),
        *((dtype, right_reach) for dtype in (torch.float32, torch.bfloat16) for right_reach in (None, 2)),
    ],
)
@pytest.mark.parametrize("options", PRIORS, ids=str)
def test_each_code_gets_the_logits_of_the_whole_grid(
    options: dict[str, Any], right_reach: int | None, dtype: torch.dtype
) -> None:
    """The logits agree with the whole-grid forward pass at every position of every image of the batch."""
    prior = tiny_prior(dtype=dtype, right_reach=right_reach, **{"grid": (6, 6), **options})
    codes, coarser, labels = some_codes(prior, batch=3)
    with torch.no_grad():
        expected = prior(codes, coarser, labels)
    assert expected.std() > 0.1
    logits = incremental(prior, codes, coarser, labels)
    assert logits.dtype == dtype
    assert torch.allclose(logits, expected, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("right_reach", [None, 1])
@torch.no_grad()
def test_wave_0_starts_new_grids(right_reach: int | None) -> None:
    """A cache that is reused for a second grid gives the same logits as a new cache."""
    prior = tiny_prior((5, 4), attention_layers=1, classes=3, right_reach=right_reach)
    codes, _, labels = some_codes(prior, batch=2)
    front = Wavefront(prior, torch.device("cpu"))
    cache = Cache(prior, front, 2, None, labels)
    first, second = (written(cache, x) for x in (codes, (codes + 1) % 5))
    assert torch.equal(second, incremental(prior, (codes + 1) % 5, None, labels))
    assert not torch.allclose(first, second)


def test_logits_do_not_depend_on_codes_not_yet_written() -> None:
    """The logits of two grids are equal up to and including the first position after which their codes differ."""
    prior = tiny_prior((3, 4), attention_layers=1)
    codes, _, _ = some_codes(prior, batch=2)
    other = (codes + 1) % 5
    other[:, 0] = codes[:, 0]
    one, two = incremental(prior, codes, None, None), incremental(prior, other, None, None)
    assert torch.equal(one[:, :, 0], two[:, :, 0])
    assert torch.equal(one[:, :, 1, 0], two[:, :, 1, 0])
    assert not torch.allclose(one[:, :, 1, 1], two[:, :, 1, 1])
