"""An autoencoder as stage 1 leaves it on disk: what is written beside the weights, and how it is loaded."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.config import AutoencoderConfig, ImagesConfig, LevelConfig, LevelGrid, as_dict, completed, level_grids
from vqvae2.run.directory import stage_dir
from vqvae2.run.model_files import load_weights, read_description, read_weights

MADE_BY = "pipelines/stage1.py"


@dataclass(frozen=True)
class TrainedAutoencoder:
    """A finished stage 1.

    Attributes:
        module: on the processor, in eval mode.
        grids: grid of codes of each level, coarsest first.
        height_width: of the images, in pixels.
        channels: of the images.
        classes: names of the classes of the training images; empty where there are none.
        class_frequencies: share of the training images in each class.
        sha256: of the weights.
        path: of the weights.
    """

    module: Autoencoder
    grids: list[LevelGrid]
    height_width: tuple[int, int]
    channels: int
    classes: list[str]
    class_frequencies: list[float]
    sha256: str
    path: Path


def describe_autoencoder(
    config: AutoencoderConfig, images: ImagesConfig, classes: list[str], labels: list[int]
) -> dict[str, Any]:
    """What model.json says of an autoencoder trained on images with these labels."""
    counts = Counter(labels)
    return {
        "kind": "autoencoder",
        "model": as_dict(config),
        "image_size": list(images.height_width),
        "channels": images.channels,
        "classes": classes,
        "class_frequencies": [counts[i] / len(labels) for i in range(len(classes))],
    }


def load_autoencoder(run_dir: str | Path) -> TrainedAutoencoder:
    """The autoencoder of a run; a UserError where stage 1 has not finished or its files are damaged."""
    directory = stage_dir(run_dir, 1)
    description = read_description(directory, MADE_BY)
    weights = read_weights(directory, description, MADE_BY)
    model = completed({"autoencoder": description["model"]})["autoencoder"]
    config = AutoencoderConfig(**{**model, "levels": [LevelConfig(**level) for level in model["levels"]]})
    module = Autoencoder(config, description["channels"])
    load_weights(module, weights, directory / "model.safetensors")
    height_width = tuple(description["image_size"])
    return TrainedAutoencoder(
        module.eval().requires_grad_(False),
        level_grids(config.levels, height_width),
        height_width,
        description["channels"],
        description["classes"],
        description["class_frequencies"],
        description["sha256"],
        directory / "model.safetensors",
    )


def build_autoencoder(config: AutoencoderConfig, channels: int, seed: int) -> Autoencoder:
    """A new autoencoder with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder(config, channels)
