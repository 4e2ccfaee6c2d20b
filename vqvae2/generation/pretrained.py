"""Saved models: config.json, a safetensors file for each model and a model card, in a folder or a repository."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.artefact import TrainedAutoencoder, rebuild_autoencoder
from vqvae2.errors import UserError
from vqvae2.generation import hub
from vqvae2.generation.card import EVALUATION, PICTURES, TRAINING, Origin, exported_files, model_card
from vqvae2.generation.description import (
    AUTOENCODER,
    CONFIG,
    FORMAT_VERSION,
    LIBRARY,
    Description,
    is_prior_file,
    prior_file,
    read_config,
)
from vqvae2.prior.artefact import TrainedPrior, rebuild_prior
from vqvae2.prior.prior import Prior
from vqvae2.run.directory import make_dir, sha256, writing
from vqvae2.run.model_files import read_checked, save_tensors

BUNDLED = Path(__file__).parents[1] / "pretrained"  # models that are part of the package, a folder each
CARD = "README.md"
EXPORTED = {*PICTURES, CARD, EVALUATION, TRAINING}
UNFINISHED = ".export."  # beginning of the name of the folder that an export is written to first


class SavedModels(NamedTuple):
    """Models that were saved with `save_models`, on the CPU.

    Attributes:
        folder: the folder that contains their files.
        description: content of its config.json.
        autoencoder: the autoencoder.
        priors: the prior of each level.
    """

    folder: Path
    description: Description
    autoencoder: TrainedAutoencoder
    priors: dict[str, TrainedPrior]


def bundled_names() -> list[str]:
    """Names of the models that are part of the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def load_models(name: str | Path, revision: str | None = None, **options: Any) -> SavedModels:
    """Load saved models.

    Args:
        name: a bundled model (a name of `bundled_names`), else an existing folder, else a repository USER/NAME. Write
            ./NAME for a folder with the name of a bundled model; a Path is always a folder.
        revision: branch, tag or commit of a repository; None: its default branch.
        **options: token, cache_dir and local_files_only of `huggingface_hub.snapshot_download`.

    Raises:
        UserError: the model cannot be found or downloaded, or a file is damaged or not supported.
    """
    folder = _local_folder(name)
    if folder is None:
        folder = hub.download(str(name), [CONFIG], revision, **options)
        remedy = f"delete {folder.parents[1]} to download it again"
        if not (folder / CONFIG).exists():
            raise UserError(f"{name}: the repository has no {CONFIG}: not a model of {LIBRARY}: use another repository")
        description = read_config(folder / CONFIG)
        # the folder is named after the commit
        folder = hub.download(str(name), sorted(description.sha256), folder.name, **options)
        if missing := [file for file in description.sha256 if not (folder / file).exists()]:
            raise UserError(
                f"{name}: {missing[0]} is not in the cache and was not downloaded: check the network, HF_HUB_OFFLINE "
                "and local_files_only; if the Hub can be reached, the repository lacks this file"
            )
    else:
        if revision is not None:
            raise UserError(f"revision: {revision!r} has no effect, because {name} is not a repository: leave it out")
        remedy = "get a complete copy of the folder, or export it again"
        description = read_config(_config_of(folder))

    def weights(file: str) -> dict[str, Tensor]:
        return read_checked(folder / file, description.sha256[file], folder / CONFIG, remedy)

    path = folder / AUTOENCODER
    autoencoder = rebuild_autoencoder(description.of_autoencoder(), weights(AUTOENCODER), path, CONFIG)
    priors = {}
    for grid in description.grids:
        file = prior_file(grid.name)
        priors[grid.name] = rebuild_prior(description.of_prior(grid.name), weights(file), folder / file, CONFIG)
    return SavedModels(folder, description, autoencoder, priors)


def _local_folder(name: str | Path) -> Path | None:
    """The folder that `name` stands for; None: a repository."""
    bundled = bundled_names()
    if name in bundled:
        return BUNDLED / name
    with suppress(OSError, RuntimeError):  # a name too long for a file, or ~USER of an unknown user
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
    if isinstance(name, str) and hub.is_repository(name):
        return None
    raise UserError(
        f"{name}: not a folder: give the folder of a saved model, a repository USER/NAME, or a bundled model "
        f"({', '.join(bundled) or 'there is none in this installation'})"
    )


def _config_of(folder: Path) -> Path:
    path = folder / CONFIG
    if not path.exists():
        is_run = (folder / "stage1").is_dir()
        remedy = "this is a run: use --run_dir, or Generator.from_run" if is_run else "give a folder with a saved model"
        raise UserError(f"{path}: file not found: {remedy}")
    return path


def save_models(
    folder: Path,
    autoencoder: TrainedAutoencoder,
    priors: Mapping[str, Prior],
    pixel_variance: float | None,
    origin: Origin,
    dtype: torch.dtype | None = None,
    name: str | None = None,
) -> None:
    """Save models to a folder. An earlier export in the folder is replaced.

    Args:
        folder: a new or empty folder, or one with an earlier export.
        autoencoder: the autoencoder, which is saved in its own precision.
        priors: the prior of each level.
        pixel_variance: for `TrainedAutoencoder.pixel_variance`.
        origin: what is known about the models, for the card.
        dtype: floating-point type of the saved priors; None: their own.
        name: name of the model in the card; None: that of the folder.

    Raises:
        UserError: the folder has other files, or a file cannot be written.
    """
    former = check_target(folder)
    make_dir(folder)
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    with writing(folder), tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as inside:
        new = Path(inside)
        save_tensors(autoencoder.module.state_dict(), new / AUTOENCODER)
        for level, prior in priors.items():
            save_tensors(_cast(prior.state_dict(), dtype), new / prior_file(level))
        description = _describe(autoencoder, priors, pixel_variance, origin, new)
        (new / CONFIG).write_text(json.dumps(description.content(), indent=2) + "\n")
        precision = str(dtype or next(iter(next(iter(priors.values())).parameters())).dtype).removeprefix("torch.")
        parameters = sum(_count(x) for x in (autoencoder.module, *priors.values()))
        card = model_card(name or folder.resolve().name, description, origin, precision, parameters)
        (new / CARD).write_text(card)
        for picture, path in origin.pictures.items():
            (new / picture).write_bytes(path.read_bytes())
        if origin.evaluation is not None:
            (new / EVALUATION).write_text(json.dumps(origin.evaluation, indent=2) + "\n")
        if origin.training is not None:
            (new / TRAINING).write_text(origin.training)
        files = sorted(os.listdir(new), key=lambda file: file == CONFIG)  # config.json last: it has the hashes
        for file in files:
            os.replace(new / file, folder / file)
        for file in former - set(files):
            (folder / file).unlink(missing_ok=True)


def check_target(folder: Path) -> set[str]:
    """Check that a folder can be saved to, and return the names of the files of an earlier export in it.

    Raises:
        UserError: the folder has other files than an earlier export, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file: use a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    unfinished = {name for name in names if name.startswith(UNFINISHED)}
    if not names - unfinished:
        return set()
    if unfinished and names - unfinished <= {CONFIG, *EXPORTED, AUTOENCODER} | {x for x in names if is_prior_file(x)}:
        return names - unfinished - {CONFIG, CARD}  # of an export that was interrupted
    try:
        return exported_files(read_config(folder / CONFIG))
    except UserError as error:
        raise UserError(f"{folder}: not empty, and not an earlier export: use a new or empty folder") from error


def _describe(
    autoencoder: TrainedAutoencoder,
    priors: Mapping[str, Prior],
    pixel_variance: float | None,
    origin: Origin,
    folder: Path,
) -> Description:
    return Description(
        LIBRARY,
        FORMAT_VERSION,
        origin.dataset,
        origin.license,
        list(autoencoder.height_width),
        autoencoder.channels,
        list(autoencoder.background),
        autoencoder.classes,
        autoencoder.class_frequencies,
        pixel_variance,
        autoencoder.module.config,
        {level: prior.config for level, prior in priors.items()},
        {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))},
    )


def _cast(weights: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Convert floating-point weights to another type."""
    return {name: x.to(dtype) if dtype and x.is_floating_point() else x for name, x in weights.items()}


def _count(module: nn.Module) -> int:
    return sum(x.numel() for x in module.parameters())
