"""Folders of images: what is in them, and which images are held out."""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from vqvae2.errors import UserError
from vqvae2.images.decode import EXTENSIONS
from vqvae2.seeding import keyed_generator


class Listing(NamedTuple):
    """Image files below a folder, sorted by name; labels are -1 and classes empty in a flat folder."""

    classes: list[str]
    labels: list[int]
    names: list[str]


def list_folder(root: Path) -> Listing:
    """The images below `root`; the class of each is the first folder on its path, if it lies in one.

    Raises:
        UserError: no such folder, no image in it, or images both in class folders and beside them.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder of images: set images.root (or images.validation_root) to an existing one"
        )
    names = sorted(
        str((Path(folder) / file).relative_to(root).as_posix())
        for folder, _, files in os.walk(root, onerror=_refuse, followlinks=True)
        for file in files
        if Path(file).suffix.lower() in EXTENSIONS
    )
    # Hidden ones are left out, such as .ipynb_checkpoints/.
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise UserError(
            f"{root}: no images in it: set images.root (or images.validation_root) to another folder; "
            f"looked for {', '.join(sorted(EXTENSIONS))}, in subfolders too"
        )
    in_class = [("/" in name) for name in names]
    if not any(in_class):
        return Listing([], [-1] * len(names), names)
    if not all(in_class):
        stray = names[in_class.index(False)]
        raise UserError(f"{root}: {stray} lies beside the class folders: move it into one, or remove the folders")
    classes = sorted({name.split("/")[0] for name in names})
    index = {name: i for i, name in enumerate(classes)}
    return Listing(classes, [index[name.split("/")[0]] for name in names], names)


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
