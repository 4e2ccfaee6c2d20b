"""The folder of a run: where each stage keeps its files, and what stages hand to one another."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqvae2.errors import UserError

FORMAT_VERSION = 2
MAY_CHANGE = frozenset(
    {
        "total_steps",
        "save_every",
        "validate_every",
        "log_every",
        "workers",
        "trackers",
        "run_dir",
        "root",
        "activation_checkpointing",
    }
)


def stage_dir(run_dir: str | Path, stage: int, level: str | None = None) -> Path:
    """The folder of stage 1, 3 or 4 (where `level` names the level)."""
    return Path(run_dir) / f"stage{stage}" / (level if stage == 4 else "")


def codes_path(run_dir: str | Path, split: str) -> Path:
    """The store of the codes of `train` or `validation`."""
    return Path(run_dir) / "codes" / f"{split}.lmdb"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn refusals to write at `path` or below it into messages."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {_cannot_write(error.strerror)}") from error
    except SafetensorError as error:
        raise UserError(f"{path}: {_cannot_write(str(error))}") from error


def _cannot_write(reason: str | None) -> str:
    return f"cannot be written ({reason}): make room or get the right to write there, or choose another run_dir"


def make_dir(path: Path) -> Path:
    """Make a folder and those above it."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise UserError(f"{path}: {_cannot_write('Permission denied')}")
    return path


def compare_configuration(directory: Path, configuration: dict[str, Any]) -> list[str]:
    """Compare the configuration of a stage with the one it began with, where it has trained already.

    Args:
        directory: of the stage.
        configuration: the sections that the stage reads.

    Returns:
        A line for each value that has changed and may change.

    Raises:
        UserError: another value has changed.
    """
    former = recorded_configuration(directory)
    changes = list(_differences(former, configuration)) if former else []
    refused = [
        f"{key} was {old!r} and is now {new!r}" for key, old, new in changes if key.split(".")[-1] not in MAY_CHANGE
    ]
    if refused:
        raise UserError(
            f"{directory / 'config.yaml'}: this stage began with another configuration: {'; '.join(refused)}: "
            "set it back, or use another run_dir"
        )
    return [f"{key} changes from {old!r} to {new!r}" for key, old, new in changes]


def record_configuration(directory: Path, configuration: dict[str, Any]) -> None:
    """Write the sections that a stage reads into its config.yaml."""
    make_dir(directory)
    write_atomically(directory / "config.yaml", yaml.safe_dump(configuration, sort_keys=False).encode())


def recorded_configuration(directory: Path) -> dict[str, Any]:
    """What the stage in `directory` was begun with; empty where it has not trained yet."""
    path = directory / "config.yaml"
    trained = (directory / "model.json").exists() or any((directory / "checkpoints").glob("step_*"))
    if not (path.exists() and trained):
        return {}
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: broken YAML ({error}): restore it, or use another run_dir") from error


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(x for x in new if x not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, rename into place; stages of one run may write the same file at once."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path):
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Tensors of any device and layout as safetensors, flushed to disk."""
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def export_model(directory: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write model.safetensors and model.json: all that is needed to rebuild a model.

    model.json is written last and carries the weights' SHA-256, so that a stage
    that was killed in between is not finished.
    """
    weights_path = directory / "model.safetensors"
    beside = directory / "model.safetensors.partial"
    with writing(weights_path):
        save_tensors(weights, beside)
        digest = sha256(beside)
        os.replace(beside, weights_path)
    described = {"format_version": FORMAT_VERSION, **description, "sha256": digest}
    write_atomically(directory / "model.json", json.dumps(described, indent=2).encode())


def read_description(directory: Path, made_by: str) -> dict[str, Any]:
    """The model.json of a finished stage; `made_by` names the command that makes it.

    Raises:
        UserError: it is missing, broken, or of another format version.
    """
    path = directory / "model.json"
    if not path.exists():
        raise UserError(f"{path}: not there: finish {made_by} first")
    try:
        description = json.loads(path.read_text())
        version = description["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}): run {made_by} again") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version}, and this program reads {FORMAT_VERSION}: run {made_by} again"
        )
    return description


def read_weights(directory: Path, description: dict[str, Any], made_by: str) -> dict[str, Tensor]:
    """The model.safetensors beside a model.json, checked against the SHA-256 there."""
    path = directory / "model.safetensors"
    if not path.exists():
        raise UserError(f"{path}: not there: run {made_by} again")
    if sha256(path) != description["sha256"]:
        raise UserError(f"{path}: not the file that {directory / 'model.json'} describes: run {made_by} again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}): run {made_by} again") from error


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model of the same configuration."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: does not hold the weights of the model described beside it: {error}") from error
