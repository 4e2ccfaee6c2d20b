"""Tests of the quantizer: results of a brute-force search, gradients, precision and memory."""

import doctest

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqvae2.autoencoder import quantiser as quantiser_module
from vqvae2.autoencoder.quantiser import Quantiser, nearest_codes


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return torch.cdist(vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def random_quantiser(codes: int = 20, dim: int = 5, learned: bool = False) -> Quantiser:
    torch.manual_seed(0)
    return Quantiser(codes, dim, learned)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize("at_once", [1, 21, 100, 2**21])
def test_nearest_codes_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Nearest codes match a brute-force search for any block size, including a partial last block."""
    monkeypatch.setattr(quantiser_module, "DISTANCES_AT_ONCE", at_once)
    torch.manual_seed(1)
    vectors, codebook = torch.randn(203, 6), torch.randn(20, 6) + 3
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


def test_codes_keep_their_places_on_a_grid_of_unequal_sides() -> None:
    """Code (b, i, j) is the nearest code to the feature vector (b, :, i, j), in both memory layouts."""
    quantiser = random_quantiser()
    features = torch.randn(2, 5, 3, 4)
    codes = quantiser(features).codes
    for b, i, j in ((0, 0, 1), (1, 2, 3), (0, 2, 0), (1, 1, 2)):
        assert codes[b, i, j] == brute_force(features[b, :, i, j][None], quantiser.codebook.data)[0]
    assert torch.equal(quantiser(features.contiguous(memory_format=torch.channels_last)).codes, codes)


def test_vectors_are_those_of_the_codes() -> None:
    """The quantized vectors are bitwise equal to `look_up` of the codes."""
    quantiser = random_quantiser()
    result = quantiser((100 * torch.randn(2, 5, 3, 4)).requires_grad_())
    assert torch.equal(result.vectors, quantiser.look_up(result.codes))
    assert torch.equal(result.vectors[1, :, 2, 0], quantiser.codebook[result.codes[1, 2, 0]])


def test_codes_that_are_not_known_have_the_mean_vector() -> None:
    """Negative codes get the mean of the codebook, the others their own vectors."""
    quantiser = random_quantiser()
    codes = torch.tensor([[[3, -1], [-1, 0]]])
    vectors = quantiser.look_up_known(codes)[0]  # (D, 2, 2)
    assert torch.equal(vectors[:, 0, 0], quantiser.codebook[3]) and torch.equal(vectors[:, 1, 1], quantiser.codebook[0])
    assert torch.equal(vectors[:, 0, 1], quantiser.codebook.mean(0)) and torch.equal(vectors[:, 1, 0], vectors[:, 0, 1])


def test_gradient_passes_straight_through() -> None:
    """The gradient of the quantized vectors is copied to the features; a learned codebook receives none of it."""
    quantiser = random_quantiser(learned=True)
    features = torch.randn(2, 5, 3, 4, requires_grad=True)
    gradient = torch.randn(2, 5, 3, 4)
    quantiser(features).vectors.backward(gradient)
    assert torch.equal(features.grad, gradient)
    assert quantiser.codebook.grad is None


def test_commitment_loss_moves_the_features_alone() -> None:
    """The gradient of the commitment loss is 2 (x - e) / number of elements for features, and none for the codebook."""
    quantiser = random_quantiser(learned=True)
    features = torch.randn(2, 5, 3, 4, requires_grad=True)
    result = quantiser(features)
    distance = features - quantiser.look_up(result.codes)
    assert torch.allclose(result.commitment_loss, distance.square().mean())
    result.commitment_loss.backward()
    assert torch.allclose(features.grad, 2 * distance / features.numel())
    assert quantiser.codebook.grad is None


def test_codebook_loss_moves_the_codebook_alone() -> None:
    """The gradient of a code vector is the sum of 2 (e - x) over its feature vectors / number of elements."""
    quantiser = random_quantiser(learned=True)
    features = torch.randn(2, 5, 3, 4, requires_grad=True)
    result = quantiser(features)
    result.codebook_loss.backward()
    expected = torch.zeros(20, 5)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                code = result.codes[b, i, j]
                expected[code] += 2 * (quantiser.codebook[code] - features[b, :, i, j]).detach() / features.numel()
    assert torch.allclose(quantiser.codebook.grad, expected, atol=1e-7)
    assert features.grad is None
    assert torch.allclose(result.codebook_loss, result.commitment_loss)


def test_autocast_does_not_lower_the_precision() -> None:
    """Inside a bfloat16 autocast region, codes, vectors and losses are those of float32, also for bfloat16 features."""
    quantiser = random_quantiser(codes=200)
    features = torch.randn(2, 5, 8, 8).bfloat16()
    plain = quantiser(features.float())
    with torch.autocast("cpu", torch.bfloat16):
        result = quantiser(features)
    assert torch.equal(
        result.codes.flatten(), brute_force(features.movedim(1, 3).reshape(-1, 5), quantiser.codebook.data)
    )
    assert torch.equal(result.vectors, plain.vectors)
    assert result.vectors.dtype == result.features.dtype == result.commitment_loss.dtype == torch.float32
    assert torch.equal(result.commitment_loss, plain.commitment_loss)


def test_double_quantiser_tells_apart_what_float32_cannot() -> None:
    """In float64, code vectors that differ by 1e-6 are distinguished."""
    quantiser = Quantiser(2, 1, learned=False).double()
    quantiser.codebook.data.copy_(torch.tensor([[0.5], [0.5 + 1e-6]], dtype=torch.float64))
    features = torch.tensor([0.5, 0.5 + 1e-6], dtype=torch.float64).view(1, 1, 1, 2)
    assert quantiser(features).codes.flatten().tolist() == [0, 1]


def test_no_matrix_of_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is larger than a block of distances or the input, so none has the size N x K."""
    monkeypatch.setattr(quantiser_module, "DISTANCES_AT_ONCE", 500)
    quantiser = random_quantiser(codes=50, dim=2, learned=True)
    features = torch.randn(1, 2, 16, 32, requires_grad=True)
    with LargestTensor() as largest:
        result = quantiser(features)
        (result.commitment_loss + result.codebook_loss).backward()
    assert features.numel() <= largest.numel <= max(500, features.numel())


def test_the_example_in_the_documentation_is_true() -> None:
    """The doctests of the quantizer module pass."""
    result = doctest.testmod(quantiser_module)
    assert result.attempted >= 3 and result.failed == 0
