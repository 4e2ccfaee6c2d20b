"""A lock that allows only one process at a time to use a directory."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator, PartialState

from vqvae2.errors import UserError
from vqvae2.run.directory import make_dir, writing
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.nodes import check_same_file

HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)


@contextmanager
def locked(directory: Path) -> Iterator[str]:
    """Lock a directory; its file `lock` names the process that holds the lock. The value is the file's content.

    The fcntl lock ends when the process ends, for whatever reason, and when it closes the file, however often it has
    opened it: a process that holds the lock must not open the file again. Loader workers do not inherit it, so a worker
    that outlives its killed parent does not hold the lock. On file systems without locks, nothing is locked.

    Raises:
        UserError: another process holds the lock, or the directory is not writable.
    """
    path = make_dir(directory) / "lock"
    with writing(path):
        path.touch()
    with open(path, "r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD_ELSEWHERE:
                raise UserError(
                    f"{directory}: in use by {_holder(file.read())}: wait for it, stop it, or use another folder"
                ) from None
        file.truncate(0)
        content = json.dumps({"host": socket.gethostname(), "process": os.getpid()})
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        yield content


@contextmanager
def locked_by_main(directory: Path, accelerator: Accelerator | PartialState) -> Iterator[None]:
    """Lock a directory on the main process, for all processes.

    Raises:
        UserError: another process holds the lock, the directory is not writable, or not all processes share it; on
            all processes.
    """
    with ExitStack() as held:
        content = ""
        with refusals_reach_all(accelerator):
            if accelerator.is_main_process:
                content = held.enter_context(locked(directory))
        check_same_file(directory / "lock", content, accelerator)
        yield


def _holder(content: str) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['process']} on host {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
