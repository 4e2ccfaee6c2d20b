"""One process at a time in a folder."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqvae2.errors import UserError
from vqvae2.run.directory import make_dir, writing

HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the folder; its file `lock` says who does.

    The lock is fcntl's, which ends with the process, however it ends, and is not passed on to loader
    workers: one that outlives its killed parent does not hold the folder. Where the file system has
    no locks, nothing is held.

    Raises:
        UserError: another process holds the folder.
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
                    f"{directory}: in use by {_holder(file.read())}: wait for it or end it, or use another run_dir"
                ) from None
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        file.flush()
        yield


def _holder(content: str) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['process']} on host {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
