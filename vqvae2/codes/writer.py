"""Writing of a code store."""

import gc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lmdb

from vqvae2.codes.environments import get, opening, refuse_cut_off
from vqvae2.codes.format import HEADER_KEY, Codes, Header, key_of, pack, unpack_record
from vqvae2.errors import UserError
from vqvae2.run.directory import make_dir

FIRST_MAP_BYTES = 2**26


class CodeWriter:
    """Writes a code store, beginning with the first missing record. Each `write` is one durable transaction."""

    def __init__(self, path: Path, header: Header):
        """Create a code store, or open an existing one that has the same header.

        Raises:
            UserError: the existing store has a different header, is damaged, or cannot be opened.
        """
        self.path = path
        self.header = header
        make_dir(path)
        gc.collect()  # closes the readers that are left in reference cycles: a process can open a file only once
        with opening(path):
            self._environment = lmdb.open(str(path), map_size=FIRST_MAP_BYTES)
        refuse_cut_off(self._environment, path)
        with self._environment.begin() as transaction:
            stored = transaction.get(HEADER_KEY)
            entries = transaction.stat()["entries"]
        if stored is None and entries == 0:
            self._put([(HEADER_KEY, header.to_json())])
        elif stored != header.to_json():
            self._environment.close()
            refuse_other_codes(path, Header.from_json(stored, path), header)
        self.written = self._environment.stat()["entries"] - 1

    def refuse_other_images(self, names: Sequence[str]) -> None:
        """Check that the last record is of the image at its place in `names`, which are those of all images.

        The header does not tell flipped copies from cropped ones.

        Raises:
            UserError: it is of another image, or damaged.
        """
        if not self.written:
            return
        index = self.written - 1
        stored = unpack_record(self.path, index, get(self._environment, key_of(index)), self.header.levels)
        if stored.name != names[index]:
            self.close()
            raise UserError(
                f"{self.path}: record {index} is of {stored.name!r}, but these settings make it {names[index]!r}: "
                f"delete {self.path.parent} or use another run_dir"
            )

    def write(self, records: list[Codes]) -> None:
        """Append records in one transaction.

        Raises:
            UserError: the file cannot be written.
        """
        self._put([(key_of(self.written + i), pack(record, self.header.levels)) for i, record in enumerate(records)])
        self.written += len(records)

    def _put(self, items: list[tuple[bytes, bytes]]) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in items:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.DiskError as error:
                raise UserError(
                    f"{self.path}: cannot be written ({error}): free disk space and run stage 2 again"
                ) from error

    def close(self) -> None:
        """Close the LMDB environment."""
        self._environment.close()


def refuse_other_codes(path: Path, stored: Header, header: Header) -> None:
    """Raise a UserError that lists the differences between the stored header and the new one."""
    changed = [key for key in asdict(header) if getattr(stored, key) != getattr(header, key)]
    values = "; ".join(f"{key} was {getattr(stored, key)!r} and is now {getattr(header, key)!r}" for key in changed)
    raise UserError(f"{path}: created with different settings: {values}: delete {path.parent} or use another run_dir")
