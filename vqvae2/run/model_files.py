"""model.safetensors and model.json, which a finished stage leaves: all that is needed to rebuild a model."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.run.directory import sha256, write_atomically, writing

FORMAT_VERSION = 2


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
