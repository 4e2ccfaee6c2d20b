"""Record of a survey of images before training: which can be read, their sizes and their classes."""

import json
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import open_encoded
from vqvae2.run.directory import make_dir, write_atomically

TURNED = range(5, 9)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112


@dataclass(frozen=True)
class File:
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


@dataclass(frozen=True)
class Survey:
    """The survey of a folder or CSV file.

    Attributes:
        root: path of the folder or CSV file.
        classes: names of the classes, in the order of the labels.
        ignored: number of files that are not images.
        files: all image files, readable or not.
    """

    root: str
    classes: list[str]
    ignored: int
    files: list[File]

    @property
    def readable(self) -> list[File]:
        """The files that can be read, which are used."""
        return [file for file in self.files if file.error is None]

    @property
    def unreadable(self) -> list[File]:
        """The files that cannot be read, which are skipped."""
        return [file for file in self.files if file.error is not None]


def describe(survey: Survey, images: ImagesConfig, record: Path) -> list[str]:
    """Return the lines of the summary that is printed for the user."""
    files = survey.readable
    height, width = images.height_width
    small = sum(file.width < width or file.height < height for file in files)
    counts = Counter(file.label for file in files)
    lines = [
        f"{survey.root}: {len(files)} images, {min(file.width for file in files)}x{min(file.height for file in files)} "
        f"to {max(file.width for file in files)}x{max(file.height for file in files)} pixels, "
        f"median {median(file.width for file in files):.0f}x{median(file.height for file in files):.0f}"
    ]
    if survey.classes:
        shown = ", ".join(f"{name} {counts[i]}" for i, name in enumerate(survey.classes[:20]))
        lines.append(f"{len(survey.classes)} classes: {shown}{', ...' if len(survey.classes) > 20 else ''}")
    lines += [f"warning: class {name} has one image" for i, name in enumerate(survey.classes) if counts[i] == 1]
    lines += [f"warning: class {name} has no readable image" for i, name in enumerate(survey.classes) if not counts[i]]
    if small:
        lines.append(f"{small} of them are smaller than {width}x{height} pixels and are upscaled")
    if survey.ignored:
        lines.append(f"{survey.ignored} files that are not images are ignored")
    if survey.unreadable:
        listed = record.with_name(f"{record.stem}_unreadable.txt")
        lines.append(f"warning: {len(survey.unreadable)} files cannot be read and are skipped; listed in {listed}")
    return lines


def read_record(record: Path) -> Survey | None:
    try:
        content = json.loads(record.read_text())
        return Survey(**{**content, "files": [File(**file) for file in content["files"]]})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: the survey is made again


def write_record(survey: Survey, images: ImagesConfig, record: Path) -> None:
    """Write a survey to `record`, and a text file with the unreadable files next to it.

    Raises:
        UserError: more than images.max_unreadable_fraction of the files cannot be read.
    """
    make_dir(record.parent)
    write_atomically(record, json.dumps(asdict(survey), indent=0).encode())
    listed = record.with_name(f"{record.stem}_unreadable.txt")
    lines = [f"{file.name}\t{file.error}\n" for file in survey.unreadable]
    write_atomically(listed, "".join(lines).encode("utf-8", "surrogateescape"))
    share = len(survey.unreadable) / len(survey.files)
    if share > images.max_unreadable_fraction or not survey.readable:
        raise UserError(
            f"{survey.root}: {len(survey.unreadable)} of {len(survey.files)} files cannot be read, more than "
            f"images.max_unreadable_fraction: {images.max_unreadable_fraction}; they are listed in {listed}: "
            "repair or remove them, or increase images.max_unreadable_fraction"
        )


def upright_width_height(file: Path | bytes) -> tuple[int, int]:
    """Width and height of an image file, or of its content, rotated by its EXIF tag; pixels are not decoded."""
    with warnings.catch_warnings(action="ignore"), open_encoded(file) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)
