"""Checks, at the start of a stage, that its processes see the same files and use the same software."""

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, gather_object

from vqvae2.errors import UserError
from vqvae2.run.launch import Together, refusals_reach_all

VISIBLE_WITHIN_SECONDS = 30.0  # a network file system may show changes of other nodes late
MAY_DIFFER = ("host", "device")

T = TypeVar("T")


def check_same_file(path: Path, content: str, state: Together) -> None:
    """Check that a file that the main process has just written and flushed is the same one on all processes.

    The main process does not open it, which may be a lock file.

    Args:
        path: the file.
        content: what the main process has written; of other processes, any text.
        state: all processes call this function together.

    Raises:
        UserError: it is not; names the hosts.
    """
    if state.num_processes == 1:
        return
    _wait_for_main(path.parent, content, lambda: _content(path), state)


def check_same_view(directory: Path, patterns: Sequence[str], state: Together) -> None:
    """Check that all processes see the same files in a directory, before each of them decides what is left to do.

    Args:
        directory: the directory, which need not exist.
        patterns: which files, relative to the directory; their names and sizes are compared.
        state: all processes call this function together.

    Raises:
        UserError: they do not; names the hosts.
    """
    if state.num_processes > 1:
        _wait_for_main(directory, _view(directory, patterns), lambda: _view(directory, patterns), state)


def _wait_for_main(directory: Path, mine: T, seen: Callable[[], T | None], state: Together) -> None:
    """Wait until each process sees in a directory what the main process has; `mine` counts on that process alone."""
    sent = [(socket.gethostname(), mine)]
    broadcast_object_list(sent)
    host, wanted = sent[0]
    with refusals_reach_all(state):
        deadline = time.monotonic() + VISIBLE_WITHIN_SECONDS
        while not state.is_main_process and seen() != wanted:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{directory}: another folder on host {socket.gethostname()} than on host {host}: put run_dir "
                    "on a file system that all nodes share, and start all processes in the same working directory"
                )
            time.sleep(0.1)


def _view(directory: Path, patterns: Sequence[str]) -> list[tuple[str, int]]:
    """Relative names and sizes of the files that match the patterns."""
    found = []
    for path in sorted(path for pattern in patterns for path in directory.glob(pattern)):
        with suppress(FileNotFoundError):
            found.append((str(path.relative_to(directory)), path.stat().st_size))
    return found


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def check_environments(mine: dict[str, Any], state: Together) -> list[str]:
    """Check that all processes have the same versions of Python, of the libraries and of this package.

    Args:
        mine: result of `describe_environment` in this process.
        state: all processes call this function together.

    Returns:
        A line for each host with another device than the main process.

    Raises:
        UserError: versions differ; on all processes.
    """
    if state.num_processes == 1:
        return []
    everyone = gather_object([mine])
    with refusals_reach_all(state):
        return compare_environments(everyone)


def compare_environments(everyone: Sequence[dict[str, Any]]) -> list[str]:
    """Compare the environments of all processes with the first one, see `check_environments`."""
    first, *others = everyone
    warnings = {}
    for other in others:
        for name in (x for x in first if x not in MAY_DIFFER):
            unknown = name == "git_commit" and None in (first[name], other[name])  # no git there, or a slow disk
            if first[name] != other[name] and not unknown:
                raise UserError(
                    f"{name} is {first[name]} on host {first['host']}, but {other[name]} on host {other['host']}: "
                    "use the same versions on all nodes"
                )
        if first["device"] != other["device"]:
            warnings[other["host"]] = (
                f"warning: host {other['host']} has {other['device']}, host {first['host']} {first['device']}: results "
                "may be rounded differently, which stops the training of stages whose weights then differ"
            )
    return list(warnings.values())
