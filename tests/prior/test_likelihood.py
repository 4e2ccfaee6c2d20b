"""Likelihoods of pixels and codes, compared with sums over all possible values."""

import itertools
import math

import pytest
import torch
from accelerate import Accelerator

from tests.prior.priors import some_codes, tiny_prior
from vqvae2.autoencoder.likelihood import pixel_nats
from vqvae2.codes.format import Codes
from vqvae2.prior.likelihood import code_nll, nats_per_code


@pytest.mark.parametrize("variance", [1e-4, 0.01, 1.0])
def test_probabilities_of_all_values_of_a_pixel_sum_to_one(variance):
    """The probabilities of the 256 values of a pixel sum to one, for means inside and outside of [-1, 1]."""
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    for mean in (-1.3, -1.0, 0.02, 0.9, 1.1):
        nats = pixel_nats(images, torch.full((256, 1, 1, 1), mean), variance)
        assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=1e-9)


def test_pixel_nats_are_those_of_the_gaussian_between_two_values():
    """The NLL agrees with the error function in the center of the range, in both tails and at the values 0 and 255."""
    mean, variance = 0.1, 0.02
    scale, centre = 127.5 * math.sqrt(variance), 127.5 * (mean + 1)

    def beyond(x: float) -> float:
        """Probability mass of the tail that begins at `x`, on the side of the mean on which `x` lies."""
        return 0.5 * math.erfc(abs(x - centre) / scale / math.sqrt(2))

    for value, low, high in ((142, 141.5, 142.5), (190, 189.5, 190.5), (100, 99.5, 100.5)):
        nats = pixel_nats(torch.full((1, 1, 1, 1), value, dtype=torch.uint8), torch.full((1, 1, 1, 1), mean), variance)
        assert nats.item() == pytest.approx(-math.log(abs(beyond(low) - beyond(high))), rel=1e-6)
    pair = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    nats = pixel_nats(pair, torch.full((1, 1, 1, 2), mean), variance)
    assert nats.item() == pytest.approx(-math.log(beyond(0.5)) - math.log(beyond(254.5)), rel=1e-6)


def test_far_off_pixels_stay_finite():
    """The NLL of pixels far from the mean is large but finite."""
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    nats = pixel_nats(images, torch.tensor([1.0, -1.0]).view(2, 1, 1, 1), 1e-6)
    assert torch.isfinite(nats).all() and (nats > 1e4).all()


class InMemory(list[Codes]):
    """Records in memory, read as those of a CodeStore are."""

    def read(self, indices: list[int], threads: object) -> list[Codes]:
        return [self[i] for i in indices]


def test_nats_per_code_by_enumeration():
    """The probabilities of all 2x2 grids of 3 codes sum to one, and the NLL of several grids is the mean of theirs."""
    prior = tiny_prior((2, 2), codes=3)
    grids = list(itertools.product(range(3), repeat=4))
    store = InMemory(Codes({"own": torch.tensor(grid).view(2, 2)}, -1, "") for grid in grids)
    accelerator = Accelerator(cpu=True)
    nats = [4 * nats_per_code(prior, store, [i], 8, accelerator) for i in range(len(grids))]
    assert sum(math.exp(-x) for x in nats) == pytest.approx(1, abs=1e-9)
    some = [3, 50, 80, 7, 7]
    mean = sum(nats[i] for i in some) / len(some) / 4
    assert nats_per_code(prior, store, some, 2, accelerator) == pytest.approx(mean, rel=1e-9)


def test_likelihood_is_given_labels_and_coarser_codes() -> None:
    """The NLL of each code is the negative logarithm of its probability under the prior with its image's label."""
    prior = tiny_prior((2, 4), coarser=(2,), classes=3)
    own, coarser, _ = some_codes(prior, batch=3)
    assert coarser is not None
    labels = torch.tensor([0, 1, -1])
    with torch.no_grad():
        nll = code_nll(prior, prior, {"own": own, **coarser}, labels)
        for given, same in ((labels, True), (None, False), (labels.flip(0), False)):
            logits = prior(own, coarser, given)
            assert torch.allclose(nll, -logits.log_softmax(1).gather(1, own[:, None])[:, 0]) == same
