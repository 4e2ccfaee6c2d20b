"""Listing of the images in a folder or CSV file, and the split into training and validation images."""

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from sys import intern
from typing import NamedTuple

import numpy as np
import torch

from vqvae2.errors import UserError
from vqvae2.images.decode import EXTENSIONS
from vqvae2.images.names import Names
from vqvae2.run.seeding import keyed_generator


class Listing(NamedTuple):
    """A list of image files, sorted by name.

    Attributes:
        classes: names of the classes, in the order of the labels; empty if there are no classes.
        labels: class index of each file, -1 if there are no classes.
        names: path of each file, relative to `folder`.
        folder: folder of the files.
        ignored: number of files that are not images.
    """

    classes: list[str]
    labels: Sequence[int]
    names: Sequence[str]
    folder: Path
    ignored: int = 0


def list_images(root: Path) -> Listing:
    """List the images in a folder and its subfolders, or the images that a CSV file names."""
    return list_csv(root) if root.suffix.lower() == ".csv" else list_folder(root)


def list_csv(path: Path) -> Listing:
    """List the images that a CSV file names; paths are relative to the folder of the CSV file.

    The first line is `path,label`, or `path` for images without classes.

    Raises:
        UserError: the file cannot be read, has another first line, has a line with a missing value, or names no image.
    """
    entries: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            columns = [column.strip().lower() for column in next(lines, [])]
            if columns not in (["path"], ["path", "label"]):
                raise UserError(f"{path}: first line is {','.join(columns)!r}: use path,label or path")
            for number, row in enumerate(lines, start=2):
                if row and (len(row) != len(columns) or not all(cell.strip() for cell in row)):
                    raise UserError(f"{path}, line {number}: {','.join(row)!r} is not valid: use {','.join(columns)}")
                if row:
                    entries[row[0].strip()] = intern(row[1].strip()) if len(row) == 2 else ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}): set images.root to another file") from error
    if not entries:
        raise UserError(f"{path}: lists no images: set images.root to another file")
    names = sorted(entries)
    classes = [] if columns == ["path"] else sorted(set(entries.values()))
    return _listing(classes, [entries[name] for name in names], names, path.parent)


def list_folder(root: Path) -> Listing:
    """List the images in a folder and its subfolders.

    The class of an image is the first folder on its path below `root`. Images directly in `root` have no class.
    Symbolic links are followed, and a folder that is reached twice is listed once. Hidden files and folders, such
    as .ipynb_checkpoints/, are skipped.

    Raises:
        UserError: `root` is not a folder, contains no images, or has images both in class folders and outside them.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: set images.root (or images.validation_root) to an existing folder")
    names = []
    ignored = 0
    for name in files_below(root):
        if os.path.splitext(name)[1].lower() in EXTENSIONS:
            names.append(name)
        else:
            ignored += 1
    if not names:
        raise UserError(
            f"{root}: contains no images: set images.root (or images.validation_root) to another folder "
            f"(supported: {', '.join(sorted(EXTENSIONS))}, also in subfolders)"
        )
    names.sort()
    stray = next((name for name in names if "/" not in name), None)
    if stray is not None and any("/" in name for name in names):
        raise UserError(f"{root}: {stray} is not in a class folder: move it into one, or remove the class folders")
    if stray is not None:
        return _listing([], [], names, root, ignored)
    folders = [intern(name.split("/", 1)[0]) for name in names]
    return _listing(sorted(set(folders)), folders, names, root, ignored)


def _listing(
    classes: list[str], classes_of: Sequence[str], names: Sequence[str], folder: Path, ignored: int = 0
) -> Listing:
    """Pack the names of files and their classes, by name; without classes, `classes_of` is not used."""
    index = {name: i for i, name in enumerate(classes)}
    labels = array("i", (index[name] for name in classes_of) if classes else [-1] * len(names))
    return Listing(classes, labels, Names.of(names), folder, ignored)


def files_below(root: Path) -> Iterator[str]:
    """Yield the paths, relative to `root`, of all files below it that are not hidden."""
    seen = set()
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        within = Path(folder).relative_to(root).as_posix()
        start = "" if within == "." else f"{within}/"
        yield from (f"{start}{name}" for name in files if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}): grant this user read permission")


def split(labels: Sequence[int], first_count: int, seed: int) -> tuple[list[int], list[int]]:
    """Split image indices at random into two sorted lists, with every class in proportion to its size (stratified).

    Within each class, images get a random rank, divided by the size of the class. The first list takes the
    `first_count` images with the lowest values, so that the image of a class with a single image is in the first list.
    """
    order = torch.randperm(len(labels), generator=keyed_generator(seed, "split")).numpy()
    _, classes, sizes = np.unique(np.asarray(labels)[order], return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")  # images of one class after another, in random order
    starts = np.cumsum(sizes) - sizes
    ranks = np.empty(len(order), np.int64)
    ranks[by_class] = np.arange(len(order)) - np.repeat(starts, sizes)
    by_rank = order[np.argsort(ranks / sizes[classes], kind="stable")]
    return np.sort(by_rank[:first_count]).tolist(), np.sort(by_rank[first_count:]).tolist()
