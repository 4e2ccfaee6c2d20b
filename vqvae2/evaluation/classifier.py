"""The classifiers of an evaluation: torchvision ResNets, trained on real images, on reconstructions, on samples.

The accuracy on real held-out images of one that has seen samples alone is the Classification Accuracy Score
(Ravuri and Vinyals 2019). The one trained on real images ranks samples and provides the features of distances.
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
from vqvae2.training.objective import Loss, WeightsObjective

LEARNING_RATE = 1e-3
GROUPS = 32  # of the normalisation, which unlike batch normalisation sees each image alone, on any number of processes


class Seen(NamedTuple):
    """What a network sees in N images: features (N, F) and logits (N, K)."""

    features: Tensor
    logits: Tensor


class LabelledBatch(NamedTuple):
    """A part of a global batch: images uint8 (B, C, H, W), labels (B,), places in the global batch (B,)."""

    images: Tensor
    labels: Tensor
    batch_indices: Tensor


class Classifier(nn.Module):
    """uint8 images (B, C, H, W) -> what a ResNet sees in them: features and class logits."""

    def __init__(self, name: str, size: int, num_classes: int):
        """A new ResNet.

        Args:
            name: of a torchvision ResNet, such as resnet18.
            size: side that images are scaled to.
            num_classes: how many logits.
        """
        super().__init__()
        self.size = size
        self.resnet = getattr(torchvision.models, name)(norm_layer=lambda channels: nn.GroupNorm(GROUPS, channels))
        self.head = nn.Linear(self.resnet.fc.in_features, num_classes)
        self.resnet.fc = nn.Identity()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Seen:
        x = to_float(images)
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        features = self.resnet(x)
        return Seen(features, self.head(features))


class ClassifierObjective(WeightsObjective):
    """Cross-entropy of the labels; every other image is mirrored where `flip` is true."""

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


def new_classifier(config: EvaluationConfig, height_width: tuple[int, int], num_classes: int, seed: int) -> Classifier:
    """A classifier with weights drawn from the seed; images are not enlarged for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(config.classifier, min(config.classifier_size, max(height_width)), num_classes)


def train_classifier(
    classifier: Classifier,
    batches: Callable[[int], Iterator[LabelledBatch]],
    accuracy: Callable[[Classifier], float],
    config: EvaluationConfig,
    flip: bool,
    directory: Path,
    seed: int,
    accelerator: Accelerator,
) -> Classifier:
    """Train to `config.classifier_steps`, or go on from where it was stopped, and leave the model in `directory`.

    Args:
        classifier: new, on the device.
        batches: step -> this process's parts of the global batches from that step on.
        accuracy: on held-out images.
        config: batch size and steps.
        flip: whether mirror images are trained on, too.
        directory: where checkpoints, metrics.jsonl and the model go.
        seed: of mirroring.
        accelerator: of the processes.

    Returns:
        The trained classifier in eval mode.
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
        objective = ClassifierObjective(classifier, config.batch_size, seed, flip)
        description = describe_classifier(classifier, config.classifier)
        train(
            objective,
            batches,
            lambda step: {"accuracy": accuracy(classifier)},
            settings,
            directory,
            seed,
            accelerator,
            description,
        )
    return load_classifier(directory).to(accelerator.device)


def describe_classifier(classifier: Classifier, name: str) -> dict[str, Any]:
    """What model.json says of it."""
    model = {"name": name, "size": classifier.size, "num_classes": classifier.head.out_features}
    return {"kind": "classifier", "model": model}


def load_classifier(directory: Path) -> Classifier:
    """The classifier that was left in `directory`, in eval mode; a UserError where there is none."""
    made_by = "pipelines/evaluate.py"
    description = read_description(directory, made_by)
    classifier = Classifier(**description["model"])
    load_weights(classifier, read_weights(directory, description, made_by), directory / "model.safetensors")
    return classifier.eval().requires_grad_(False)
