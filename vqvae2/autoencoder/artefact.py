"""Build, describe and load the autoencoder that stage 1 trains."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.config import AutoencoderConfig, ImagesConfig, LevelConfig, LevelGrid, as_dict, completed, level_grids
from vqvae2.images.decode import WHITE
from vqvae2.run.directory import recorded_configuration, stage_dir
from vqvae2.run.model_files import load_weights, read_description, read_weights

MADE_BY = "pipelines/stage1.py"


@dataclass(frozen=True)
class TrainedAutoencoder:
    """The result of a finished stage 1.

    Attributes:
        module: the autoencoder, on the CPU, in eval mode.
        grids: grid of codes of each level, coarsest first.
        height_width: size of the images in pixels.
        channels: channels of the images.
        background: color under transparent pixels of image files, three values from 0 to 255.
        classes: class names of the training images; empty without classes.
        class_frequencies: share of the training images in each class.
        pixel_variance: mean squared error of the reconstructions of training images, of pixels in [-1, 1]; None if an
            earlier version trained the autoencoder.
        sha256: SHA-256 of the weights file.
        path: path of the weights file.
    """

    module: Autoencoder
    grids: list[LevelGrid]
    height_width: tuple[int, int]
    channels: int
    background: tuple[int, int, int]
    classes: list[str]
    class_frequencies: list[float]
    pixel_variance: float | None
    sha256: str
    path: Path


def describe_autoencoder(
    config: AutoencoderConfig, images: ImagesConfig, classes: list[str], labels: Sequence[int], pixel_variance: float
) -> dict[str, Any]:
    """The content of model.json for an autoencoder; `labels` are the class indices of the training images."""
    counts: Counter[int] = Counter(labels)
    return {
        "kind": "autoencoder",
        "model": as_dict(config),
        "image_size": list(images.height_width),
        "channels": images.channels,
        "background": list(images.background),
        "classes": classes,
        "class_frequencies": [counts[i] / len(labels) for i in range(len(classes))],
        "pixel_variance": pixel_variance,
    }


def load_autoencoder(run_dir: str | Path) -> TrainedAutoencoder:
    """Load the autoencoder of a run.

    Raises:
        UserError: stage 1 has not finished, or its files are damaged.
    """
    directory = stage_dir(run_dir, 1)
    description = read_description(directory, MADE_BY)
    if "background" not in description:  # written by an earlier version
        recorded = recorded_configuration(directory).get("images", {})
        description["background"] = recorded.get("background", WHITE)
    weights = read_weights(directory, description, MADE_BY)
    return rebuild_autoencoder(description, weights, directory / "model.safetensors", "model.json")


def rebuild_autoencoder(
    description: dict[str, Any], weights: dict[str, Tensor], path: Path, described_in: str
) -> TrainedAutoencoder:
    """Rebuild an autoencoder from its description, as in model.json, and its weights.

    Args:
        description: content of model.json, with a background.
        weights: state_dict of the autoencoder.
        path: path of the weights file.
        described_in: name of the file that contains the description, for messages.

    Raises:
        UserError: the weights do not fit the description.
    """
    model = completed({"autoencoder": description["model"]})["autoencoder"]
    config = AutoencoderConfig(**{**model, "levels": [LevelConfig(**level) for level in model["levels"]]})
    module = Autoencoder(config, description["channels"])
    load_weights(module, weights, path, described_in)
    height_width = tuple(description["image_size"])
    return TrainedAutoencoder(
        module.eval().requires_grad_(False),
        level_grids(config.levels, height_width),
        height_width,
        description["channels"],
        tuple(description["background"]),
        description["classes"],
        description["class_frequencies"],
        description.get("pixel_variance"),
        description["sha256"],
        path,
    )


def build_autoencoder(config: AutoencoderConfig, channels: int, seed: int) -> Autoencoder:
    """A new autoencoder, randomly initialized from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder(config, channels)
