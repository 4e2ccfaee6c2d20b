"""Tests of rejection sampling: the classifier confidence and which samples are kept."""

from pathlib import Path

import torch
from PIL import Image

from vqvae2.evaluation.classifier import Seen
from vqvae2.evaluation.rejection import best_of_each_class, confidence, keep_best
from vqvae2.generation.samples import Written


def test_confidence_is_the_probability_of_what_was_asked_for():
    logits = torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.9, 0.1]]).log()
    expected = torch.tensor([0.2, 0.8, 0.9], dtype=torch.float64)
    torch.testing.assert_close(confidence(logits, torch.tensor([0, 1, -1])), expected)


def test_the_best_of_each_class_are_kept():
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 2])
    confidences = torch.tensor([0.1, 0.9, 0.8, 0.7, 0.2, 0.3, 0.01])
    assert best_of_each_class(confidences, labels, 0.5).tolist() == [1, 2, 3, 6]
    assert best_of_each_class(confidences, labels, 0.01).tolist() == [1, 2, 6]
    assert best_of_each_class(confidences, labels, 1.0).tolist() == list(range(7))


class OnAnotherDevice(torch.nn.Module):
    """Stands in for a classifier on a GPU; it always predicts the first of two classes with high confidence."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))
        self.seen: list[str] = []

    def forward(self, images: torch.Tensor) -> Seen:
        self.seen.append(images.device.type)
        return Seen(torch.zeros(len(images), 1), torch.tensor([[5.0, 0.0]]).expand(len(images), -1))


def test_samples_are_ranked_on_the_device_of_the_classifier(tmp_path: Path):
    """Samples are moved to the classifier's device before they are classified."""
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    classifier = OnAnotherDevice()
    grid = keep_best(Written(paths, torch.tensor([0, 0, 1]), tmp_path / "grid_x.png"), classifier, 0.5)
    assert classifier.seen == ["meta"] and grid.exists()
    assert sorted(x.name for x in grid.with_suffix("").iterdir()) == ["0.png", "2.png"]
