"""Trained models that the training of another model starts from: of a run, a folder or a repository."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from vqvae2.autoencoder.artefact import TrainedAutoencoder, load_autoencoder
from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.config import TrainConfig, as_dict
from vqvae2.errors import UserError
from vqvae2.generation.description import CONFIG, TRAINING_FIELDS
from vqvae2.generation.pretrained import bundled_names, load_models
from vqvae2.prior.artefact import TrainedPrior, load_prior
from vqvae2.prior.prior import Prior
from vqvae2.run.directory import accessing, expanded, recorded_configuration
from vqvae2.training.checkpoints import newest_step

# Fields that may differ, since they change the training of a model and not its function.
AUTOENCODER_TRAINING = frozenset(
    {
        "reconstruction_loss",
        "commitment_weight",
        "codebook_update",
        "ema_decay",
        "revival_window_images",
        "continuous_steps",
        "level_dropout",
    }
)
PRIOR_TRAINING = frozenset({"dropout", "label_dropout", *TRAINING_FIELDS})


def recorded_start(directory: Path) -> dict[str, Any]:
    """What the stage in `directory` has recorded about the model that it started from; empty if there is none."""
    recorded = recorded_configuration(directory)
    return {key: recorded[key] for key in ("started_from",) if key in recorded}


def start_autoencoder(
    new: Autoencoder, channels: int, train: TrainConfig, directory: Path, say: Callable[[str], object]
) -> dict[str, Any]:
    """Copy the weights of the autoencoder that stage 1 starts from, if there is one and no checkpoint to resume from.

    Args:
        new: the autoencoder to train.
        channels: channels of its images.
        train: settings of stage 1.
        directory: directory of stage 1.
        say: prints a line.

    Returns:
        What config.yaml and model.json say about the start: the source and the SHA-256 of its weights file.

    Raises:
        UserError: there is no finished autoencoder in `start_from`, or it has other sizes.
    """
    source = train.start_from
    if source is None or newest_step(directory / "checkpoints"):
        return {}
    with _named("stage1.start_from"):
        old, _ = _open(source)
        _check_sizes(source, _autoencoder_sizes(old.module, old.channels), _autoencoder_sizes(new, channels))
    _copy(old.module, new)
    say(f"starting from the autoencoder of {source}")
    return _record(source, old.sha256)


def start_prior(
    new: Prior, autoencoder_sha256: str, train: TrainConfig, directory: Path, say: Callable[[str], object]
) -> dict[str, Any]:
    """Copy the weights of the prior that a stage starts from, if there is one and no checkpoint to resume from.

    Args:
        new: the prior to train.
        autoencoder_sha256: SHA-256 of the weights file of the autoencoder whose codes it is trained on.
        train: settings of the stage.
        directory: directory of the stage.
        say: prints a line.

    Returns:
        What config.yaml and model.json say about the start: the source and the SHA-256 of its weights file.

    Raises:
        UserError: there is no finished prior of this level in `start_from`, or it has other sizes.
    """
    source, level = train.start_from, new.grid.name
    if source is None or newest_step(directory / "checkpoints"):
        return {}
    with _named(f"priors.{level}.train.start_from"):
        autoencoder, prior_of = _open(source)
        names = [grid.name for grid in autoencoder.grids]
        if level not in names:
            raise UserError(f"{source}: its levels are {', '.join(names)}: use a model with a level {level}, or null")
        old = prior_of(level)
        _check_sizes(source, _prior_sizes(old.module), _prior_sizes(new))
    _copy(old.module, new)
    say(f"starting from the prior of {source}")
    if autoencoder.sha256 != autoencoder_sha256:
        say(f"warning: the prior of {source} was trained on the codes of another autoencoder")
    return _record(source, old.sha256)


def _record(source: str, sha256: str) -> dict[str, Any]:
    return {"started_from": {"path": source, "sha256": sha256}}


def _copy(old: nn.Module, new: nn.Module) -> None:
    """Copy the weights of a model of the same sizes, except those that depend on a different number of classes."""
    own = new.state_dict()
    fitting = {name: x for name, x in old.state_dict().items() if name in own and x.shape == own[name].shape}
    new.load_state_dict(own | fitting)


def _open(source: str) -> tuple[TrainedAutoencoder, Callable[[str], TrainedPrior]]:
    """The autoencoder of a run, folder or repository, and a function that loads the prior of a level."""
    folder = expanded(source)
    if source in bundled_names() or (folder / CONFIG).exists() or not folder.is_dir():
        models = load_models(source)
        return models.autoencoder, models.priors.__getitem__
    if not (folder / "stage1").is_dir():
        raise UserError(f"{source}: neither the directory of a run nor the folder of a saved model: use one of these")
    autoencoder = load_autoencoder(folder)
    return autoencoder, lambda level: load_prior(folder, level, autoencoder)


def _autoencoder_sizes(autoencoder: Autoencoder, channels: int) -> dict[str, Any]:
    fields = as_dict(autoencoder.config)
    levels = fields.pop("levels")
    sizes = {"images.channels": channels, "number of autoencoder.levels": len(levels)}
    sizes |= {f"autoencoder.levels[{i}].{name}": x for i, level in enumerate(levels) for name, x in level.items()}
    return sizes | {f"autoencoder.{name}": x for name, x in fields.items() if name not in AUTOENCODER_TRAINING}


def _prior_sizes(prior: Prior) -> dict[str, Any]:
    level, fields = prior.grid.name, as_dict(prior.config)
    sizes: dict[str, Any] = {"levels": [grid.name for grid in (*prior.coarser, prior.grid)]}
    for grid in (*prior.coarser, prior.grid):
        sizes |= {f"{name} of level {grid.name}": x for name, x in grid._asdict().items() if name != "name"}
    return sizes | {f"priors.{level}.{name}": x for name, x in fields.items() if name not in PRIOR_TRAINING}


def _check_sizes(source: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise a UserError that names every size that differs, with both values."""
    different = [
        f"{name} is {old.get(name)!r} there and {new.get(name)!r} here"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    if different:
        raise UserError(f"{source}: {'; '.join(different)}: use a model of the same sizes, or these values")


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put the name of the field in front of the message of a UserError."""
    try:
        with accessing():
            yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
