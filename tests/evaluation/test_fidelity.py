"""Fidelity metrics, compared with values known in closed form."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch_fidelity.metric_prc import prc_features_to_metric

from vqvae2.evaluation import inception
from vqvae2.evaluation.classifier import Seen
from vqvae2.evaluation.fidelity import (
    NEIGHBOURS,
    ROWS,
    fidelity,
    frechet_distance,
    nearest,
    precision_and_recall,
)

GENERATOR = torch.Generator().manual_seed(0)


def with_moments(mean: torch.Tensor, covariance: torch.Tensor, count: int = 200) -> torch.Tensor:
    """Random features with exactly the given sample mean and covariance."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=GENERATOR)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_two_gaussians():
    """For commuting covariances, it is the squared distance of the means plus that of the standard deviations."""
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=GENERATOR)).Q
    deviations = torch.tensor([[1.0, 2.0, 0.5, 3.0, 1.5], [2.0, 1.0, 0.5, 1.0, 4.0]], dtype=torch.float64)
    means = torch.tensor([[0.0, 1.0, 2.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
    sets = [with_moments(m, rotation @ torch.diag(d**2) @ rotation.T) for m, d in zip(means, deviations, strict=True)]
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(*sets) == pytest.approx(expected.item(), rel=1e-6)


def test_a_set_against_itself():
    features = torch.randn(60, 7, generator=GENERATOR)
    logits = torch.randn(60, 3, generator=GENERATOR)
    found = fidelity(Seen(features, logits), Seen(features, logits))
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert found["kid"] <= 1e-6  # the unbiased estimate for a set and itself is negative
    assert found["precision"] == found["recall"] == 1


def test_kernel_distance_has_a_deviation():
    """KID has a nonzero standard deviation, because its subsets are smaller than the set for any set size."""
    sets = [Seen(torch.randn(60, 7, generator=GENERATOR), torch.randn(60, 3, generator=GENERATOR)) for _ in range(2)]
    assert fidelity(*sets)["kid_std"] > 1e-4


def test_inception_computes_in_float32(monkeypatch: pytest.MonkeyPatch):
    """Inception computes in float32 even inside an autocast region, as for published distances."""
    one = torch.full((1, 1), 1 + 2**-12)  # bf16 rounds it to 1

    class Extractor(torch.nn.Module):
        def __init__(self, *arguments: object, **options: object):
            super().__init__()

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return one @ one, one @ one

    monkeypatch.setattr(inception, "FeatureExtractorInceptionV3", Extractor)
    network = inception.Inception(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert (one @ one).dtype == torch.bfloat16
        seen = network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert seen.features.item() > 1 and seen.logits.item() > 1


def test_score_of_certain_and_of_equal_classes():
    """The Inception score is 4 for certain predictions spread evenly over 4 classes, 1 for identical predictions."""
    features = torch.randn(40, 3, generator=GENERATOR)
    certain = 100 * torch.nn.functional.one_hot(torch.arange(40) % 4, 4).float()
    assert fidelity(Seen(features, certain), Seen(features, certain))["score"] == pytest.approx(4, rel=1e-6)
    same = certain[:1].expand(40, -1)
    assert fidelity(Seen(features, same), Seen(features, same))["score"] == pytest.approx(1, rel=1e-6)


def test_precision_and_recall_of_half_a_set():
    """Samples from one of two distant clusters of real features have a precision of 1 and a recall of 0.5."""
    groups = [torch.randn(30, 2, generator=GENERATOR) + 100 * i for i in range(2)]
    found = precision_and_recall(groups[0] + 0.01, torch.cat(groups))
    assert found["precision"] == pytest.approx(1, abs=0.1)
    assert found["recall"] == pytest.approx(0.5, abs=0.05)
    found = precision_and_recall(torch.cat(groups), groups[0] + 0.01)
    assert found["precision"] == pytest.approx(0.5, abs=0.05)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_precision_and_recall_of_many_images_need_no_square_of_distances():
    """Distances of ROWS images to all others exist at a time; the results do not depend on ROWS."""
    samples, real = torch.randn(ROWS + 300, 4, generator=GENERATOR), torch.randn(ROWS + 200, 4, generator=GENERATOR)
    with LargestTensor() as largest:
        found = precision_and_recall(samples, real)
    assert largest.elements <= ROWS * len(samples)
    at_once = prc_features_to_metric(samples, real, prc_neighborhood=NEIGHBOURS, verbose=False)
    assert found == pytest.approx({name: at_once[name] for name in found}, abs=1e-3)


def test_too_few_images_have_no_distance():
    few, many = torch.randn(4, 3), torch.randn(20, 3)
    assert frechet_distance(few, many) is None
    assert set(fidelity(Seen(few, few), Seen(many, many)).values()) == {None}


def test_nearest():
    others = torch.tensor([[0.0], [10.0], [4.0], [5.0]])
    assert nearest(torch.tensor([[4.4], [9.0]]), others, 2).tolist() == [[2, 3], [1, 3]]
    assert nearest(torch.tensor([[0.0]]), others[:1], 3).tolist() == [[0]]
