"""Opening of LMDB environments: once per process, never shared across a fork, and only if the file is complete."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from vqvae2.codes.format import HEADER_KEY, Header, key_of
from vqvae2.errors import UserError

# LMDB does not allow a process to open a file twice, so all readers of a process share one environment for each file.
# The key is (process id, device, inode).
_environments: WeakValueDictionary[tuple[int, int, int], lmdb.Environment] = WeakValueDictionary()


def open_to_read(path: Path) -> lmdb.Environment:
    """Return the environment at `path`, shared by all readers of this process.

    Raises:
        UserError: the path does not exist, is not a code store, or is damaged or truncated.
    """
    if not path.exists():
        raise UserError(f"{path}: no codes found: run stage 2 first")
    for other, inherited in list(_environments.items()):
        if other[0] != os.getpid():
            inherited.close()  # the copy inherited by a fork; the environment of the parent process stays open
    file = _file(path)
    key = (os.getpid(), file.st_dev, file.st_ino)
    environment = _environments.get(key)
    if environment is None:
        with opening(path):
            environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir())
        refuse_cut_off(environment, path)
        _environments[key] = environment
    return environment


def _file(path: Path) -> os.stat_result:
    file = path / "data.mdb" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{path}: not a code store ({file.name} is missing): run stage 2 with another run_dir")
    return file.stat()


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Convert LMDB errors while opening to a UserError."""
    try:
        yield
    except lmdb.Error as error:
        raise UserError(
            f"{path}: cannot be opened ({error}): if it is damaged, delete it and run stage 2 again"
        ) from error


def refuse_cut_off(environment: lmdb.Environment, path: Path) -> None:
    """Raise a UserError if the file is truncated.

    LMDB maps the file into memory, so reading past its end would kill the process.
    """
    pages = environment.info()["last_pgno"] + 1
    if _file(path).st_size < pages * environment.stat()["psize"]:
        environment.close()
        raise UserError(f"{path}: truncated, the end of the file is missing: delete it and run stage 2 again")


def get(environment: lmdb.Environment, key: bytes) -> bytes | None:
    """Return the value of a key, or None if the key does not exist."""
    with environment.begin() as transaction:
        return transaction.get(key)


def get_all(environment: lmdb.Environment, indices: Sequence[int]) -> list[bytes | None]:
    """Return the records of images, None where one does not exist. Other threads run while it waits for the disk."""
    with environment.begin() as transaction:
        return [transaction.get(key_of(index)) for index in indices]


def read_header(path: Path) -> Header:
    """Read the header of a code store, which may be incomplete.

    Raises:
        UserError: there is no code store at `path`, or it is damaged or has another format version.
    """
    try:
        content = get(open_to_read(path), HEADER_KEY)
    except lmdb.Error as error:
        raise UserError(f"{path}: cannot be read ({error}): delete it and run stage 2 again") from error
    return Header.from_json(content, path)
