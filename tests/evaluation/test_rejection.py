"""Which samples are kept."""

import torch

from vqvae2.evaluation.rejection import best_of_each_class, confidence


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
