"""Record of a survey of images before training: which can be read, their sizes and their classes.

The record is a safetensors file that all processes and loader workers map into memory. Runs of earlier versions have a
JSON file instead, which is read where there is no newer record.
"""

import json
import os
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import open_encoded
from vqvae2.images.names import Chosen, Names
from vqvae2.run.directory import flush_tensors, make_dir, write_atomically, writing

TURNED = range(5, 9)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112
FORMAT = "vqvae2 survey"
FORMAT_VERSION = 1
COLUMNS = {"label": "i", "bytes": "q", "changed": "q", "width": "i", "height": "i"}  # type codes of the module array


class File(NamedTuple):
    """The record of one image file.

    Attributes:
        name: path relative to the folder.
        label: class index, -1 if there are no classes.
        bytes: file size at the time of the survey.
        changed: modification time at the time of the survey, in nanoseconds.
        width: width of the upright image in pixels, 0 if the file cannot be read.
        height: height of the upright image in pixels, 0 if the file cannot be read.
        error: reason why the file cannot be read; None if it can be read.
    """

    name: str
    label: int
    bytes: int = 0
    changed: int = 0
    width: int = 0
    height: int = 0
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Survey(Sequence[File]):
    """The survey of a folder or CSV file: a sequence of its N image files, readable or not.

    Attributes:
        root: path of the folder or CSV file.
        classes: names of the classes, in the order of the labels.
        ignored: number of files that are not images.
        names: name of each file.
        columns: the numbers of each file, (N,) each, by the names in COLUMNS.
        unreadable: indices of the M files that cannot be read, in increasing order, int64 (M,).
        errors: reason of each unreadable file.
    """

    root: str
    classes: list[str]
    ignored: int
    names: Names
    columns: dict[str, np.ndarray]
    unreadable: np.ndarray
    errors: Names

    @staticmethod
    def of(root: str, classes: list[str], ignored: int, files: Iterable[File]) -> "Survey":
        """Pack the records of files, which are taken one at a time."""
        columns = {name: array(code) for name, code in COLUMNS.items()}
        unreadable, errors = array("q"), []

        def names() -> Iterator[str]:
            for i, file in enumerate(files):
                for column, value in zip(columns.values(), file[1:-1], strict=True):
                    column.append(value)
                if file.error is not None:
                    unreadable.append(i)
                    errors.append(file.error)
                yield file.name

        packed = Names.of(names())
        numbers = {name: np.asarray(column) for name, column in columns.items()}
        return Survey(root, classes, ignored, packed, numbers, np.asarray(unreadable), Names.of(errors))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> File:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        place = int(np.searchsorted(self.unreadable, index))
        failed = place < len(self.unreadable) and self.unreadable[place] == index
        numbers = [int(column[index]) for column in self.columns.values()]
        return File._make([self.names[index], *numbers, self.errors[place] if failed else None])

    @property
    def readable(self) -> np.ndarray:
        """Indices of the files that can be read, which are used, int64."""
        return np.delete(np.arange(len(self)), self.unreadable)

    def of_readable(self, column: str) -> np.ndarray:
        """One of the columns, without the unreadable files."""
        values = self.columns[column]
        return np.delete(values, self.unreadable) if len(self.unreadable) else values

    @property
    def readable_names(self) -> Sequence[str]:
        """Names of the files that can be read."""
        return Chosen(self.names, array("i", self.readable.tolist())) if len(self.unreadable) else self.names


def record_path(run_dir: Path, part: str) -> Path:
    """Path of the record of a part, `train` or `validation`."""
    return run_dir / "survey" / f"{part}.safetensors"


def read_record(record: Path) -> Survey | None:
    """Map the survey in `record` into memory, or read that of an earlier version next to it.

    Returns:
        None if there is none or it is damaged: the survey is made again.
    """
    try:
        return _mapped(record) if record.exists() else _of_json(json.loads(_former(record).read_text()))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _mapped(record: Path) -> Survey:
    with safe_open(record, "pt") as file:  # PyTorch's tensors are mapped, NumPy's arrays are read
        about = json.loads(file.metadata()["about"])
        if (about.pop("format"), about.pop("format_version")) != (FORMAT, FORMAT_VERSION):
            raise ValueError("another format")
        columns = {name: file.get_tensor(name).numpy() for name in COLUMNS}
        unreadable = file.get_tensor("unreadable").numpy()
    names, errors = Names.mapped(record, "names"), Names.mapped(record, "errors")
    return Survey(**about, names=names, columns=columns, unreadable=unreadable, errors=errors)


def _of_json(content: dict[str, Any]) -> Survey:
    files = (File(**file) for file in content.pop("files"))
    return Survey.of(**content, files=files)


def _former(record: Path) -> Path:
    """Path of the record of earlier versions."""
    return record.with_suffix(".json")


def write_record(survey: Survey, images: ImagesConfig, record: Path) -> None:
    """Write a survey to `record`, and a text file with the unreadable files next to it.

    Raises:
        UserError: more than images.max_unreadable_fraction of the files cannot be read.
    """
    make_dir(record.parent)
    about = {"format": FORMAT, "format_version": FORMAT_VERSION, "root": survey.root}
    about |= {"classes": survey.classes, "ignored": survey.ignored}
    arrays = {**survey.columns, "unreadable": survey.unreadable}
    arrays |= survey.names.arrays("names") | survey.errors.arrays("errors")
    beside = record.with_name(f"{record.name}.{os.getpid()}.partial")
    with writing(record):
        save_file(arrays, beside, {"about": json.dumps(about)})
        flush_tensors(beside)
        os.replace(beside, record)
        _former(record).unlink(missing_ok=True)
    failed = zip(survey.unreadable.tolist(), survey.errors, strict=True)
    lines = [f"{survey.names[i]}\t{error}\n" for i, error in failed]
    listed = unreadable_list(record)
    write_atomically(listed, "".join(lines).encode("utf-8", "surrogateescape"))
    share = len(lines) / len(survey)
    if share > images.max_unreadable_fraction or len(lines) == len(survey):
        raise UserError(
            f"{survey.root}: {len(lines)} of {len(survey)} files cannot be read, more than "
            f"images.max_unreadable_fraction: {images.max_unreadable_fraction}; they are listed in {listed}: "
            "repair or remove them, or increase images.max_unreadable_fraction"
        )


def unreadable_list(record: Path) -> Path:
    """Path of the text file with the unreadable files."""
    return record.with_name(f"{record.stem}_unreadable.txt")


def upright_width_height(file: Path | bytes) -> tuple[int, int]:
    """Width and height of an image file, or of its content, rotated by its EXIF tag; pixels are not decoded."""
    with warnings.catch_warnings(action="ignore"), open_encoded(file) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)
