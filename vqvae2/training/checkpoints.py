"""Checkpoints: safetensors files and a manifest with their SHA-256.

A checkpoint is written to a temporary directory, which is then renamed, so that an interrupted write is never loaded.
"""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.run.directory import sha256, write_atomically, writing
from vqvae2.run.model_files import save_tensors

KEPT = 2


class Checkpoint(NamedTuple):
    """The training state after `step` updates, as groups of named tensors."""

    step: int
    groups: dict[str, dict[str, Tensor]]


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint below `directory` and remove all but the newest two.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are kept.
    """
    final = directory / f"step_{checkpoint.step:08d}"
    beside = directory / f".{final.name}.partial"
    try:
        with writing(beside):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            for name, tensors in checkpoint.groups.items():
                save_tensors(tensors, beside / f"{name}.safetensors")
            manifest = {path.name: sha256(path) for path in sorted(beside.iterdir())}
            write_atomically(
                beside / "manifest.json", json.dumps({"step": checkpoint.step, "sha256": manifest}, indent=2).encode()
            )
            if final.exists():
                shutil.rmtree(final)
            os.replace(beside, final)
            _flush_directory(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for old in _newest_first(directory)[KEPT:]:
        shutil.rmtree(old)


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """Load the newest undamaged checkpoint below `directory`; None if there is no checkpoint.

    Each damaged checkpoint is skipped with a warning.

    Raises:
        UserError: all checkpoints are damaged.
    """
    for path in _newest_first(directory):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            damaged = [name for name, digest in manifest["sha256"].items() if sha256(path / name) != digest]
            if damaged:
                raise ValueError(f"SHA-256 of {', '.join(damaged)} does not match manifest.json")
            groups = {Path(name).stem: load_file(path / name) for name in manifest["sha256"]}
            return Checkpoint(manifest["step"], groups)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(f"checkpoint {path} is damaged and is skipped: {error}", stacklevel=2)
    if _newest_first(directory):
        raise UserError(f"{directory}: all checkpoints are damaged: delete {directory.parent} to train from the start")
    return None


def newest_step(directory: Path) -> int:
    """The step of the newest checkpoint below `directory`, damaged or not; 0 if there is none."""
    newest = _newest_first(directory)
    return int(newest[0].name.removeprefix("step_")) if newest else 0


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("step_????????"), reverse=True)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
