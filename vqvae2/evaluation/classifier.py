"""Classifiers used by the evaluation: torchvision ResNets trained on real images, on reconstructions or on samples.

The Classification Accuracy Score (CAS, Ravuri and Vinyals 2019) is the accuracy on real held-out images of the
classifier trained on samples only. The classifier trained on real images provides the confidences for rejection
sampling and the features for FID, KID, precision and recall.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision.models
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.config import EvaluationConfig, TrainConfig
from vqvae2.images.convert import to_float
from vqvae2.run.model_files import load_weights, read_description, read_weights
from vqvae2.training.loop import finished_step, train
from vqvae2.training.metrics_log import read_metrics
from vqvae2.training.objective import Loss, WeightsObjective

LEARNING_RATE = 1e-3
GROUPS = 32  # of GroupNorm: unlike batch norm it does not depend on the other images or the number of processes


class Seen(NamedTuple):
    """Output of a feature network for N images: features (N, F) and logits (N, K)."""

    features: Tensor
    logits: Tensor


class LabelledBatch(NamedTuple):
    """A part of a global batch: images uint8 (B, C, H, W), labels (B,), batch indices (B,)."""

    images: Tensor
    labels: Tensor
    batch_indices: Tensor


class Classifier(nn.Module):
    """ResNet with GroupNorm: uint8 images (B, C, H, W) -> features (B, F) and class logits (B, K)."""

    def __init__(self, name: str, size: int, num_classes: int):
        """Build a randomly initialized classifier.

        Args:
            name: a torchvision ResNet, such as resnet18.
            size: side in pixels that images are resized to.
            num_classes: number of classes, K.
        """
        super().__init__()
        self.size = size
        self.resnet = getattr(torchvision.models, name)(norm_layer=lambda channels: nn.GroupNorm(GROUPS, channels))
        self.head = nn.Linear(self.resnet.fc.in_features, num_classes)
        self.resnet.fc = nn.Identity()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Seen:
        x = to_float(images)  # (B, C, H, W)
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)  # (B, 3, size, size)
        features = self.resnet(x)  # (B, F)
        return Seen(features, self.head(features))  # (B, F), (B, K)


class ClassifierObjective(WeightsObjective[Classifier]):
    """Cross-entropy loss; if `flip` is true, images are flipped horizontally with probability 0.5."""

    def __init__(self, classifier: Classifier, batch_size: int, seed: int, flip: bool):
        super().__init__(classifier, batch_size, seed)
        self.flip = flip

    def loss(self, model: nn.Module, batch: LabelledBatch, step: int) -> Loss:
        images = batch.images
        if self.flip:
            mirrored = self.uniforms("flip", batch.batch_indices, step) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        logits = model(images).logits.float()
        loss = F.cross_entropy(logits, batch.labels)
        accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        return Loss(loss, {"accuracy": accuracy})


class Trained(NamedTuple):
    """A trained classifier, in eval mode, and its accuracy on the held-out images."""

    classifier: Classifier
    accuracy: float


def new_classifier(config: EvaluationConfig, height_width: tuple[int, int], num_classes: int, seed: int) -> Classifier:
    """Build a classifier with weights initialized from the seed.

    Its input size is at most the longer side of the images, so that images are not enlarged beyond that.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(config.classifier, min(config.classifier_size, max(height_width)), num_classes)


def train_classifier(
    new: Callable[[], Classifier],
    batches: Callable[[int], Iterator[LabelledBatch]],
    accuracy: Callable[[Classifier], float],
    config: EvaluationConfig,
    flip: bool,
    directory: Path,
    seed: int,
    accelerator: Accelerator,
) -> Trained:
    """Train a classifier to `config.classifier_steps`, resuming from its last checkpoint, and export it.

    Args:
        new: builds an untrained classifier; not called if the training has finished.
        batches: takes a step, returns an iterator over this process's parts of the global batches from that step on.
        accuracy: computes the accuracy of a classifier on held-out images.
        config: batch size and number of steps.
        flip: whether training images are flipped horizontally with probability 0.5.
        directory: receives the checkpoints, metrics.jsonl and the exported model.
        seed: seed of the training, including the horizontal flips.
        accelerator: the accelerator to train with.
    """
    steps = config.classifier_steps
    settings = TrainConfig(
        batch_size=config.batch_size,
        total_steps=steps,
        learning_rate=LEARNING_RATE,
        warmup_steps=steps // 20,
        mixed_precision=accelerator.mixed_precision,
        save_every=max(100, steps // 4),
        validate_every=steps,
        log_every=max(1, steps // 40),
    )
    if finished_step(directory) < steps:
        classifier = new().to(accelerator.device)
        objective = ClassifierObjective(classifier, config.batch_size, seed, flip)
        train(
            objective,
            batches,
            lambda step: {"accuracy": accuracy(classifier)},
            settings,
            directory,
            seed,
            accelerator,
            lambda: describe_classifier(classifier, config.classifier),
        )
    validated = read_metrics(directory / "metrics.jsonl")[-1]  # the last step is always validated
    return Trained(load_classifier(directory).to(accelerator.device), validated["accuracy"])


def describe_classifier(classifier: Classifier, name: str) -> dict[str, Any]:
    """Return the content of model.json for a classifier."""
    model = {"name": name, "size": classifier.size, "num_classes": classifier.head.out_features}
    return {"kind": "classifier", "model": model}


def load_classifier(directory: Path) -> Classifier:
    """Load the classifier exported to `directory`, in eval mode.

    Raises:
        UserError: the folder contains no classifier, or its files are damaged.
    """
    made_by = "pipelines/evaluate.py"
    description = read_description(directory, made_by)
    with torch.device("meta"):  # without drawing random weights
        classifier = Classifier(**description["model"])
    classifier.to_empty(device="cpu")
    weights = read_weights(directory, description, made_by)
    load_weights(classifier, weights, directory / "model.safetensors", "model.json")
    return classifier.eval().requires_grad_(False)
