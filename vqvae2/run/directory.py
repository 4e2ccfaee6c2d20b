"""The run directory: the location of each stage's files, and the recorded configurations of the stages."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from vqvae2.config import completed
from vqvae2.errors import UserError

MAY_CHANGE = frozenset(
    {
        "total_steps",
        "learning_rate",
        "gradient_clip",
        "gradient_accumulation_steps",
        "mixed_precision",
        "save_every",
        "validate_every",
        "log_every",
        "workers",
        "trackers",
        "run_dir",
        "root",
        "activation_checkpointing",
        "shard_optimizer",
        "likelihood_samples",  # of a comparison: for its evaluation only
    }
)
# Access to a path that was given, or to a file in it, and not a defect of the code. A missing file is not among them.
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.ENAMETOOLONG})


def _mode_of_new_files() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


NEW_FILE = _mode_of_new_files()  # asked at import, because it sets the umask of all threads for a moment


def stage_dir(run_dir: str | Path, stage: int, level: str | None = None) -> Path:
    """Return the directory of stage 1, 3 or 4; in stage 4, `level` names the level."""
    directory = Path(run_dir) / f"stage{stage}"
    if stage != 4:
        return directory
    assert level is not None
    return directory / level


def codes_path(run_dir: str | Path, split: str) -> Path:
    """Return the path of the code store of a split, `train` or `validation`."""
    return Path(run_dir) / "codes" / f"{split}.lmdb"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert errors of writing to `path`, or to a file in it, to a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {_cannot_write(error.strerror)}") from error
    except SafetensorError as error:
        raise UserError(f"{path}: {_cannot_write(str(error))}") from error


@contextmanager
def accessing() -> Iterator[None]:
    """Convert errors of access to a file or folder (DENIED) to a UserError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in DENIED or error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: cannot be accessed ({error.strerror}): grant permission, or use another path"
        ) from error


def expanded(path: str | Path) -> Path:
    """The path with the home directory in place of ~ or ~USER.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user or home directory: use a path without ~") from error


def flush_tensors(path: Path) -> None:
    """Flush a safetensors file to disk, with the permissions of any new file: its library gives them to the owner."""
    with open(path, "rb+") as file:
        with suppress(PermissionError):  # some file systems have no permissions
            os.fchmod(file.fileno(), NEW_FILE)
        os.fsync(file.fileno())


def _cannot_write(reason: str | None) -> str:
    return f"cannot be written ({reason}): free disk space, grant write permission, or use another folder"


def read_record(path: Path) -> dict[str, Any]:
    """Content of a JSON file that records what was made from what; empty if it is missing or damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def make_dir(path: Path) -> Path:
    """Create a directory and its parents.

    Raises:
        UserError: the directory cannot be created or is not writable.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise UserError(f"{path}: {_cannot_write('Permission denied')}")
    return path


def compare_configuration(directory: Path, configuration: dict[str, Any]) -> list[str]:
    """Compare the configuration of a stage with the one it was started with, if it has trained.

    Args:
        directory: directory of the stage.
        configuration: the sections that the stage reads.

    Returns:
        A line for each changed value, all of which are allowed to change (MAY_CHANGE).

    Raises:
        UserError: a value has changed that must not change.
    """
    former = recorded_configuration(directory)
    changes = list(_differences(former, configuration)) if former else []
    refused = [
        f"{key} was {old!r} and is now {new!r}" for key, old, new in changes if key.split(".")[-1] not in MAY_CHANGE
    ]
    if refused:
        raise UserError(
            f"{directory / 'config.yaml'}: this stage was started with another configuration: {'; '.join(refused)}: "
            "restore the recorded values, or use another run_dir"
        )
    return [f"{key} changes from {old!r} to {new!r}" for key, old, new in changes]


def recorded_sections(run_dir: Path) -> dict[str, Any]:
    """Return the sections with which the trained stages of a run were started, merged into one configuration."""
    whole: dict[str, Any] = {}
    for directory in [run_dir / "stage1", run_dir / "stage3", *sorted((run_dir / "stage4").glob("*/"))]:
        sections = recorded_configuration(directory)
        priors = {**whole.get("priors", {}), **sections.get("priors", {})}
        whole |= {key: sections[key] for key in ("images", "autoencoder", "stage1", "seed") if key in sections}
        whole |= {"priors": priors} if priors else {}
    return whole


def record_configuration(directory: Path, configuration: dict[str, Any]) -> None:
    """Write the sections that a stage reads into its config.yaml."""
    make_dir(directory)
    write_atomically(directory / "config.yaml", yaml.safe_dump(configuration, sort_keys=False).encode())


def recorded_configuration(directory: Path) -> dict[str, Any]:
    """Return the sections with which the stage in `directory` was started, with absent fields completed.

    The result is empty if the stage has not trained.

    Raises:
        UserError: config.yaml is not valid YAML.
    """
    path = directory / "config.yaml"
    trained = (directory / "model.json").exists() or any((directory / "checkpoints").glob("step_*"))
    if not (path.exists() and trained):
        return {}
    try:
        return completed(dict(yaml.safe_load(path.read_text())))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML ({error}): restore the file, or use another run_dir") from error


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(x for x in new if x not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is never incomplete: write a temporary file, flush it to disk, and rename it.

    The name of the temporary file has the process id, since stages of a run may write the same file at the same time.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path):
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
