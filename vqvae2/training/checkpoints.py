"""Checkpoints: safetensors files and a manifest with their SHA-256.

A checkpoint is written to a temporary directory, which is then renamed, so that an interrupted write is never loaded.
Several processes may each write files of their own into it; the main process prepares it and renames it.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.run.directory import sha256, write_atomically, writing
from vqvae2.run.launch import ALONE, Together, refusals_reach_all
from vqvae2.run.model_files import save_tensors

KEPT = 2
FILE_BYTES = 2**30  # larger groups are split, so that one part is hashed while the next ones are written
WRITERS = 4  # files that are written, flushed and hashed side by side

Groups = dict[str, dict[str, Tensor]]


class Checkpoint(NamedTuple):
    """The training state after `step` updates, as groups of named tensors."""

    step: int
    groups: Groups


def save_checkpoint(directory: Path, checkpoint: Checkpoint, together: Together = ALONE) -> None:
    """Write a checkpoint below `directory` and remove all but the newest two.

    Args:
        directory: directory of the checkpoints, the same one on all processes.
        checkpoint: its groups are what this process writes; those of several processes are joined on loading.
        together: the processes that call this function together.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are kept. On all processes.
    """
    final = directory / f"step_{checkpoint.step:08d}"
    beside = directory / f".{final.name}.partial"
    main = together.is_main_process
    try:
        with refusals_reach_all(together), writing(beside):
            if main:
                for unfinished in directory.glob(".step_*.partial"):  # of a process that was killed
                    shutil.rmtree(unfinished, ignore_errors=True)
                beside.mkdir(parents=True)
        written: dict[str, str] = {}
        with refusals_reach_all(together), writing(beside):
            if checkpoint.groups:
                written = _write(beside, checkpoint.groups, "" if main else f"-process{together.process_index}")
        if together.num_processes > 1:
            written = {name: digest for each in gather_object([written]) for name, digest in each.items()}
        with refusals_reach_all(together), writing(beside):
            if main:
                _publish(beside, final, {"step": checkpoint.step, "sha256": dict(sorted(written.items()))})
    finally:
        if main:
            shutil.rmtree(beside, ignore_errors=True)
    if main:
        for old in _newest_first(directory)[KEPT:]:
            shutil.rmtree(old)


def _write(folder: Path, groups: Groups, suffix: str) -> dict[str, str]:
    """Write and flush the files of this process, and return the SHA-256 of each, which is computed meanwhile."""
    files = {
        folder / f"{name}{part}{suffix}.safetensors": tensors
        for name, group in groups.items()
        for part, tensors in _parts(group)
    }

    def write(path: Path) -> str:
        save_tensors(files[path], path)
        return sha256(path)

    with ThreadPoolExecutor(WRITERS) as pool:
        return dict(zip((path.name for path in files), pool.map(write, files), strict=True))


def _parts(group: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Split a group into parts of about FILE_BYTES, with a suffix for the file name of each."""
    parts: list[dict[str, Tensor]] = [{}]
    for name, x in group.items():
        if parts[-1] and sum(y.nbytes for y in parts[-1].values()) + x.nbytes > FILE_BYTES:
            parts.append({})
        parts[-1][name] = x
    yield from zip([f"-part{i}" for i in range(len(parts))] if len(parts) > 1 else [""], parts, strict=True)


def _publish(beside: Path, final: Path, manifest: dict[str, object]) -> None:
    """Write the manifest of a complete checkpoint and rename it into place."""
    write_atomically(beside / "manifest.json", json.dumps(manifest, indent=2).encode())
    if final.exists():
        shutil.rmtree(final)
    os.replace(beside, final)
    _flush_directory(final.parent)


def load_checkpoint(directory: Path, together: Together = ALONE) -> Checkpoint | None:
    """Load the newest undamaged checkpoint below `directory`; None if there is no checkpoint.

    Each damaged checkpoint is skipped with a warning. Tensors are read from the files when they are used. Each of
    several processes checks a share of the files, and all load the same checkpoint.

    Raises:
        UserError: all checkpoints are damaged.
    """
    several = together.num_processes > 1
    names = [[path.name for path in _newest_first(directory)]]
    if several:  # on a network file system, a process may not see the newest directories yet
        broadcast_object_list(names)
    for name in names[0]:
        path = directory / name
        problem = _problem(path, together.process_index, together.num_processes)
        problems = [x for x in (gather_object([problem]) if several else [problem]) if x]
        if not problems:
            return _read(path)
        if together.is_main_process:
            warnings.warn(f"checkpoint {path} is damaged and is skipped: {problems[0]}", stacklevel=2)
    if names[0]:
        raise UserError(f"{directory}: all checkpoints are damaged: delete {directory.parent} to train from the start")
    return None


def _problem(path: Path, index: int, count: int) -> str | None:
    """What is wrong with a checkpoint, or None; process `index` of `count` checks its share of the files."""
    try:
        digests = json.loads((path / "manifest.json").read_text())["sha256"]
        mine = sorted(digests)[index::count]
        with ThreadPoolExecutor(WRITERS) as pool:
            found = dict(zip(mine, pool.map(lambda name: sha256(path / name), mine), strict=True))
        damaged = [name for name, digest in found.items() if digests[name] != digest]
        _read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        return f"{error}"
    return f"SHA-256 of {', '.join(damaged)} does not match manifest.json" if damaged else None


def _read(path: Path) -> Checkpoint:
    """Join the files of a checkpoint to groups; tensors are read when they are used."""
    manifest = json.loads((path / "manifest.json").read_text())
    groups: Groups = {}
    for name in manifest["sha256"]:
        groups.setdefault(Path(name).stem.split("-")[0], {}).update(load_file(path / name))
    return Checkpoint(manifest["step"], groups)


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
