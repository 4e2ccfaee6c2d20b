"""Build, describe and load the priors that stages 3 and 4 train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.autoencoder.artefact import TrainedAutoencoder
from vqvae2.config import LevelGrid, PriorConfig, as_dict, completed
from vqvae2.errors import UserError
from vqvae2.prior.prior import Prior
from vqvae2.run.directory import stage_dir
from vqvae2.run.model_files import load_weights, read_description, read_weights


@dataclass(frozen=True)
class TrainedPrior:
    """The result of a finished stage 3 or 4.

    Attributes:
        module: the prior, on the CPU, in eval mode.
        sha256: SHA-256 of the weights file.
    """

    module: Prior
    sha256: str


def prior_dir(run_dir: str | Path, names: list[str], level: str) -> Path:
    """The directory of the prior of `level`.

    Stage 3 trains the prior of the coarsest of the levels `names`, stage 4 those of all others.
    """
    return stage_dir(run_dir, 3) if level == names[0] else stage_dir(run_dir, 4, level)


def build_prior(
    config: PriorConfig,
    grids: list[LevelGrid],
    level: str,
    num_classes: int,
    seed: int,
    codebooks: dict[str, Tensor] | None = None,
) -> Prior:
    """A new prior of `level`, initialized from the seed and, where given, from the code vectors (K, D) of each level.

    It is conditioned on all levels that come before `level` in `grids`.
    """
    index = [grid.name for grid in grids].index(level)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = Prior(config, grids[index], grids[:index], num_classes)
        if codebooks is not None:
            prior.start_from(codebooks)
    return prior


def describe_prior(prior: Prior, autoencoder: TrainedAutoencoder) -> dict[str, Any]:
    """The content of model.json for a prior over the codes of `autoencoder`."""
    model = as_dict(prior.config)
    del model["train"], model["activation_checkpointing"]
    return {
        "kind": "prior",
        "model": model,
        "level": prior.grid._asdict(),
        "coarser": [grid._asdict() for grid in prior.coarser],
        "classes": autoencoder.classes,
        "class_frequencies": autoencoder.class_frequencies,
        "autoencoder_sha256": autoencoder.sha256,
    }


def load_prior(run_dir: str | Path, level: str, autoencoder: TrainedAutoencoder) -> TrainedPrior:
    """Load the prior of a level of a run.

    Raises:
        UserError: its stage has not finished, its files are damaged, or it was trained on the codes of a different
            autoencoder.
    """
    names = [grid.name for grid in autoencoder.grids]
    directory = prior_dir(run_dir, names, level)
    made_by = "pipelines/stage3.py" if level == names[0] else f"pipelines/stage4.py --level {level}"
    description = read_description(directory, made_by)
    path = directory / "model.safetensors"
    if description["autoencoder_sha256"] != autoencoder.sha256:
        raise UserError(
            f"{path} was trained on codes of a different autoencoder than {autoencoder.path}: "
            f"delete {directory} and run {made_by} again, or use another run_dir"
        )
    return rebuild_prior(description, read_weights(directory, description, made_by), path, "model.json")


def rebuild_prior(
    description: dict[str, Any], weights: dict[str, Tensor], path: Path, described_in: str
) -> TrainedPrior:
    """Rebuild a prior from its description, as in model.json, and its weights.

    Args:
        description: content of model.json.
        weights: state_dict of the prior; weights of a lower precision are converted to float32.
        path: path of the weights file, for messages.
        described_in: name of the file that contains the description, for messages.

    Raises:
        UserError: the weights do not fit the description.
    """
    level = description["level"]["name"]
    module = Prior(
        PriorConfig(**completed({"priors": {level: description["model"]}})["priors"][level]),
        LevelGrid(**description["level"]),
        [LevelGrid(**grid) for grid in description["coarser"]],
        len(description["classes"]),
    )
    load_weights(module, weights, path, described_in)
    return TrainedPrior(module.eval().requires_grad_(False), description["sha256"])
