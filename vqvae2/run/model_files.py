"""model.safetensors and model.json, which a finished stage writes: all that is needed to rebuild a model."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.run.directory import flush_tensors, sha256, write_atomically, writing

FORMAT_VERSION = 2


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors of any device and memory layout to a safetensors file and flush it to disk."""
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
    flush_tensors(path)


def export_model(directory: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write model.safetensors and model.json: all that is needed to rebuild a model.

    model.json is written last and contains the SHA-256 of model.safetensors, so a stage that is killed before that
    does not count as finished.

    Args:
        directory: directory of the stage.
        weights: state_dict of the model.
        description: content of model.json, without format_version and sha256.

    Raises:
        UserError: a file cannot be written.
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
    """Read the model.json of a finished stage.

    Args:
        directory: directory of the stage.
        made_by: command that writes the file, for messages.

    Raises:
        UserError: the file is missing or damaged, or has another format version.
    """
    path = directory / "model.json"
    if not path.exists():
        raise UserError(f"{path}: file not found: run {made_by} until it is finished")
    try:
        description = json.loads(path.read_text())
        version = description["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}): run {made_by} again") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version} is not supported, only {FORMAT_VERSION}: run {made_by} again"
        )
    return description


def read_weights(directory: Path, description: dict[str, Any], made_by: str) -> dict[str, Tensor]:
    """Read the model.safetensors of a finished stage and check it against the SHA-256 in its model.json.

    Args:
        directory: directory of the stage.
        description: content of model.json.
        made_by: command that writes the file, for messages.

    Raises:
        UserError: the file is missing or damaged, or is not the one that model.json describes.
    """
    path = directory / "model.safetensors"
    return read_checked(path, description["sha256"], directory / "model.json", f"run {made_by} again")


def read_checked(path: Path, digest: str, recorded_in: Path, remedy: str) -> dict[str, Tensor]:
    """Read a safetensors file and check it against its recorded SHA-256.

    Args:
        path: the file.
        digest: its SHA-256.
        recorded_in: the file that records the SHA-256, for messages.
        remedy: what the user can do about a missing or damaged file, for messages.

    Raises:
        UserError: the file is missing or damaged, or its SHA-256 differs.
    """
    if not path.exists():
        raise UserError(f"{path}: file not found: {remedy}")
    try:
        if sha256(path) != digest:
            raise UserError(f"{path}: its SHA-256 differs from that in {recorded_in}: {remedy}")
        return load_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): grant read permission") from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}): {remedy}") from error


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], path: Path, described_in: str) -> None:
    """Load weights into a model of the same configuration.

    Args:
        model: the model.
        weights: its state_dict, of any precision.
        path: the file of the weights, for the message.
        described_in: name of the file that describes the model, for the message.

    Raises:
        UserError: the weights do not fit the model.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its weights do not fit the model that {described_in} describes: {reason}") from error
