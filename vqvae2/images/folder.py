"""Listing of the images in a folder or CSV file, and the split into training and validation images."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from vqvae2.errors import UserError
from vqvae2.images.decode import EXTENSIONS
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
    labels: list[int]
    names: list[str]
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
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}): set images.root to another file") from error
    columns = [column.strip().lower() for column in rows[0]] if rows else []
    if columns not in (["path"], ["path", "label"]):
        raise UserError(f"{path}: first line is {','.join(columns)!r}: use path,label or path")
    entries: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if row and (len(row) != len(columns) or not all(cell.strip() for cell in row)):
            raise UserError(f"{path}, line {number}: {','.join(row)!r} is not valid: use {','.join(columns)}")
        if row:
            entries[row[0].strip()] = row[-1].strip()
    if not entries:
        raise UserError(f"{path}: lists no images: set images.root to another file")
    names = sorted(entries)
    if columns == ["path"]:
        return Listing([], [-1] * len(names), names, path.parent)
    classes = sorted(set(entries.values()))
    return Listing(classes, [classes.index(entries[name]) for name in names], names, path.parent)


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
    files = sorted(files_below(root))
    names = [name for name in files if Path(name).suffix.lower() in EXTENSIONS]
    if not names:
        raise UserError(
            f"{root}: contains no images: set images.root (or images.validation_root) to another folder "
            f"(supported: {', '.join(sorted(EXTENSIONS))}, also in subfolders)"
        )
    ignored = len(files) - len(names)
    in_class = [("/" in name) for name in names]
    if not any(in_class):
        return Listing([], [-1] * len(names), names, root, ignored)
    if not all(in_class):
        stray = names[in_class.index(False)]
        raise UserError(f"{root}: {stray} is not in a class folder: move it into one, or remove the class folders")
    classes = sorted({name.split("/")[0] for name in names})
    index = {name: i for i, name in enumerate(classes)}
    return Listing(classes, [index[name.split("/")[0]] for name in names], names, root, ignored)


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
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}): grant this user read permission")


def split(labels: list[int], first_count: int, seed: int) -> tuple[list[int], list[int]]:
    """Split image indices at random into two sorted lists, with every class in proportion to its size (stratified).

    Within each class, images get a random rank, divided by the size of the class. The first list takes the
    `first_count` images with the lowest values, so that the image of a class with a single image is in the first list.
    """
    order = torch.randperm(len(labels), generator=keyed_generator(seed, "split")).tolist()
    seen: dict[int, int] = {}
    ranks = {}
    for index in order:
        ranks[index] = seen.setdefault(labels[index], 0)
        seen[labels[index]] += 1
    by_rank = sorted(order, key=lambda index: ranks[index] / seen[labels[index]])
    return sorted(by_rank[:first_count]), sorted(by_rank[first_count:])
