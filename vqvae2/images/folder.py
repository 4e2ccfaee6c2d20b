"""Folders of images: what is in them, and which images are held out."""

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
    """Image files, sorted by name; labels are -1 and classes empty where there are no classes.

    Attributes:
        classes: their names, in the order of the labels.
        labels: of each file.
        names: paths below `folder`.
        folder: where they lie.
        ignored: number of files that are no images.
    """

    classes: list[str]
    labels: list[int]
    names: list[str]
    folder: Path
    ignored: int = 0


def list_images(root: Path) -> Listing:
    """The images below a folder, or those that a CSV file names."""
    return list_csv(root) if root.suffix.lower() == ".csv" else list_folder(root)


def list_csv(path: Path) -> Listing:
    """The images of a CSV file with a line `path,label` above, or `path` alone; paths are relative to its folder.

    Raises:
        UserError: no such file, another first line, a line without its label, or no image named.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}): set images.root to another file") from error
    columns = [column.strip().lower() for column in rows[0]] if rows else []
    if columns not in (["path"], ["path", "label"]):
        raise UserError(f"{path}: its first line is {','.join(columns)!r}: it must be path,label or path")
    entries: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if row and (len(row) != len(columns) or not all(cell.strip() for cell in row)):
            raise UserError(f"{path}, line {number}: {','.join(row)!r}: it must hold {','.join(columns)}")
        if row:
            entries[row[0].strip()] = row[-1].strip()
    if not entries:
        raise UserError(f"{path}: names no images: set images.root to another file")
    names = sorted(entries)
    if columns == ["path"]:
        return Listing([], [-1] * len(names), names, path.parent)
    classes = sorted(set(entries.values()))
    return Listing(classes, [classes.index(entries[name]) for name in names], names, path.parent)


def list_folder(root: Path) -> Listing:
    """The images below `root`; the class of each is the first folder on its path, if it lies in one.

    Links are followed; a folder that is reached twice counts once. Hidden files and folders are left out, such
    as .ipynb_checkpoints/.

    Raises:
        UserError: no such folder, no image in it, or images both in class folders and beside them.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder of images: set images.root (or images.validation_root) to an existing one"
        )
    files = sorted(_files_below(root))
    names = [name for name in files if Path(name).suffix.lower() in EXTENSIONS]
    if not names:
        raise UserError(
            f"{root}: no images in it: set images.root (or images.validation_root) to another folder; "
            f"looked for {', '.join(sorted(EXTENSIONS))}, in subfolders too"
        )
    ignored = len(files) - len(names)
    in_class = [("/" in name) for name in names]
    if not any(in_class):
        return Listing([], [-1] * len(names), names, root, ignored)
    if not all(in_class):
        stray = names[in_class.index(False)]
        raise UserError(f"{root}: {stray} lies beside the class folders: move it into one, or remove the folders")
    classes = sorted({name.split("/")[0] for name in names})
    index = {name: i for i, name in enumerate(classes)}
    return Listing(classes, [index[name.split("/")[0]] for name in names], names, root, ignored)


def _files_below(root: Path) -> Iterator[str]:
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
    raise UserError(f"{error.filename}: {error.strerror}: give this user the right to read it")


def split(labels: list[int], first_count: int, seed: int) -> tuple[list[int], list[int]]:
    """Two sorted lists of indices, `first_count` in the first, every class shared out in proportion to its size.

    The images of a class are ranked at random and every image gets its rank over its class's size;
    the first list takes the lowest of these, so that a class with one image is in the first list.
    """
    order = torch.randperm(len(labels), generator=keyed_generator(seed, "split")).tolist()
    seen: dict[int, int] = {}
    ranks = {}
    for index in order:
        ranks[index] = seen.setdefault(labels[index], 0)
        seen[labels[index]] += 1
    by_rank = sorted(order, key=lambda index: ranks[index] / seen[labels[index]])
    return sorted(by_rank[:first_count]), sorted(by_rank[first_count:])
