"""Opening LMDB environments: once in a process, never across a fork, and no file that was cut off."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from vqvae2.codes.format import HEADER_KEY, Header
from vqvae2.errors import UserError

# LMDB allows a process to open a file once, so that its readers share what is open: by process and file.
_environments: WeakValueDictionary[tuple[int, int, int], lmdb.Environment] = WeakValueDictionary()


def open_to_read(path: Path) -> lmdb.Environment:
    """The environment at `path`, shared by all readers of this process.

    Raises:
        UserError: nothing is there, or it is no store, damaged or cut off.
    """
    if not path.exists():
        raise UserError(f"{path}: no codes there: run stage 2 first")
    for other, inherited in list(_environments.items()):
        if other[0] != os.getpid():
            inherited.close()  # this process's copy, from before a fork; the parent keeps its own
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
        raise UserError(f"{path}: not a store of codes ({file.name} is missing): run stage 2 into another folder")
    return file.stat()


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn LMDB's errors while opening into messages."""
    try:
        yield
    except lmdb.Error as error:
        raise UserError(
            f"{path}: cannot be opened ({error}): if it is damaged, delete it and run stage 2 again"
        ) from error


def refuse_cut_off(environment: lmdb.Environment, path: Path) -> None:
    """LMDB maps the file into memory: reading past its end would kill the process."""
    pages = environment.info()["last_pgno"] + 1
    if _file(path).st_size < pages * environment.stat()["psize"]:
        environment.close()
        raise UserError(f"{path}: cut off, its end is missing: delete it and run stage 2 again")


def get(environment: lmdb.Environment, key: bytes) -> bytes | None:
    """The value of a key, None where there is none."""
    with environment.begin() as transaction:
        return transaction.get(key)


def read_header(path: Path) -> Header:
    """The header of a store, finished or not."""
    try:
        content = get(open_to_read(path), HEADER_KEY)
    except lmdb.Error as error:
        raise UserError(f"{path}: cannot be read ({error}): delete it and run stage 2 again") from error
    return Header.from_json(content, path)
