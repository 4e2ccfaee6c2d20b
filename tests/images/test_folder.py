"""Listing image folders and splitting them into training and validation sets."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.folder import Listing, list_folder, list_images, split
from vqvae2.images.sources import open_images
from vqvae2.run.seeding import keyed_generator


def touch(root: Path, *names: str) -> Path:
    """Create empty files below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def content(listing: Listing) -> tuple:
    """Return the fields of a listing, labels and names as lists."""
    return tuple(listing._replace(labels=list(listing.labels), names=list(listing.names)))


def test_class_folders(tmp_path: Path):
    """The first folder in a file's path is its class; classes and names are sorted."""
    listing = list_folder(touch(tmp_path, "shoe/b.JPG", "hat/a.png", "shoe/old/a.jpeg", "hat/z.webp"))
    assert listing.classes == ["hat", "shoe"]
    assert list(zip(listing.names, listing.labels, strict=True)) == [
        ("hat/a.png", 0),
        ("hat/z.webp", 0),
        ("shoe/b.JPG", 1),
        ("shoe/old/a.jpeg", 1),
    ]


def test_flat_folder(tmp_path: Path):
    """Without class folders there are no classes and all labels are -1."""
    listing = list_folder(touch(tmp_path, "b.png", "a.bmp"))
    assert content(listing) == ([], [-1, -1], ["a.bmp", "b.png"], tmp_path, 0)


def test_what_is_no_image_is_left_aside(tmp_path: Path):
    """Files that are not images are counted; hidden files and folders are ignored. Neither creates a class."""
    names = [
        "hat/a.png",
        "hat/notes.txt",
        "hat/.b.png",
        ".ipynb_checkpoints/c.png",
        "hat/.cache/d.png",
        "README.md",
        "empty/x.csv",
    ]
    listing = list_folder(touch(tmp_path, *names))
    assert content(listing) == (["hat"], [0], ["hat/a.png"], tmp_path, 3)


def test_linked_class_folders_are_followed(tmp_path: Path):
    """A class folder can be a symbolic link."""
    touch(tmp_path, "elsewhere/a.png", "root/hat/b.png")
    (tmp_path / "root" / "shoe").symlink_to(tmp_path / "elsewhere")
    assert list_folder(tmp_path / "root").names == ["hat/b.png", "shoe/a.png"]


def test_a_folder_reached_twice_counts_once(tmp_path: Path):
    """A folder that is reachable by several paths is listed once; links to a parent folder cause no infinite loop."""
    touch(tmp_path, "hat/a.png", "hat/old/b.png")
    (tmp_path / "hat" / "old" / "back").symlink_to(tmp_path)
    (tmp_path / "shoe").symlink_to(tmp_path / "hat" / "old")
    assert len(list_folder(tmp_path).names) == 2


def test_a_csv_file_names_images_and_labels(tmp_path: Path):
    """Paths in a CSV file are relative to it and classes are sorted; without a label column there are no classes."""
    path = tmp_path / "list.csv"
    path.write_text('path,label\nold/b.png,shoe\n"a, b.png",hat\n\nc.png,shoe\n')
    expected = (["hat", "shoe"], [0, 1, 1], ["a, b.png", "c.png", "old/b.png"], tmp_path, 0)
    assert content(list_images(path)) == expected
    path.write_text("path\nb.png\na.png\n")
    assert content(list_images(path)) == ([], [-1, -1], ["a.png", "b.png"], tmp_path, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "first line is ''"),
        ("a.png,hat\n", "first line is 'a.png,hat'"),
        ("path,label\na.png\n", "line 2: 'a.png'"),
        ("path,label\na.png,hat\nb.png, \n", "line 3"),
        ("path,label\n", "lists no images"),
    ],
)
def test_a_broken_csv_file_is_refused(tmp_path: Path, content: str, said: str):
    """An invalid CSV file raises a UserError that quotes the line; a missing file is named."""
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        list_images(tmp_path / "list.csv")
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read"):
        list_images(tmp_path / "gone.csv")


def test_images_beside_class_folders_are_refused(tmp_path: Path):
    """An image beside the class folders raises a UserError that names the image."""
    with pytest.raises(UserError, match=r"stray\.png is not in a class folder"):
        list_folder(touch(tmp_path, "hat/a.png", "stray.png"))


def test_an_empty_folder_is_refused(tmp_path: Path):
    """A folder without images raises a UserError with its path and the accepted suffixes."""
    with pytest.raises(UserError, match=rf"{tmp_path}: contains no images.*\.png"):
        list_folder(touch(tmp_path, "notes.txt"))


@pytest.mark.parametrize("name", ["gone", "file.png"])
def test_a_missing_folder_is_refused(tmp_path: Path, name: str):
    """A path that is missing or not a folder raises a UserError that names the configuration key."""
    touch(tmp_path, "file.png")
    with pytest.raises(UserError, match=rf"{name}: no such folder: set images\.root"):
        list_folder(tmp_path / name)


def test_an_unreadable_image_is_named(tmp_path: Path):
    """A set with an unreadable image can be opened; loading this image raises a UserError with its name."""
    touch(tmp_path, "a.png", "b.png", "c.png")
    for name in ("a.png", "c.png"):
        Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "held_out.png")
    config = ImagesConfig(source="folder", root=str(tmp_path), size=4, validation_fraction=0.25)
    train, validation = open_images(config, seed=0)
    both = {name: (part, i) for part in (train, validation) for i, name in enumerate(part.names)}
    part, index = both["b.png"]
    with pytest.raises(UserError, match=r"b\.png: cannot be read as an image"):
        part.load(index)
    part, index = both["a.png"]
    assert part.load(index)[:, 0, 0].tolist() == [9, 8, 7]


LABELS = [0] * 60 + [1] * 30 + [2] * 9 + [3]


@pytest.mark.parametrize("first_count", [5, 50, 90, 99])
def test_a_split_is_disjoint_and_complete(first_count: int):
    """Every index is in exactly one of the two sorted parts, and the first part has the requested size."""
    first, second = split(LABELS, first_count, seed=0)
    assert first == sorted(first) and second == sorted(second) and len(first) == first_count
    assert sorted(first + second) == list(range(100))


def test_a_split_keeps_proportions():
    """Each class is split in the same proportion, to within one image."""
    first, _ = split(LABELS, 80, seed=0)
    counts = Counter(LABELS[i] for i in first)
    for label, size in Counter(LABELS).items():
        assert abs(counts[label] - 0.8 * size) <= 1


@pytest.mark.parametrize("seed", range(10))
def test_the_only_image_of_a_class_is_for_training(seed: int):
    """The only image of a class is assigned to the training set for every seed."""
    first, _ = split(LABELS, 50, seed)
    assert 99 in first


def test_a_split_is_drawn_from_the_seed():
    """The same seed gives the same split, and another seed a different one."""
    assert split(LABELS, 80, seed=1) == split(LABELS, 80, seed=1) != split(LABELS, 80, seed=2)


@pytest.mark.parametrize("seed", range(3))
def test_a_split_is_that_of_earlier_versions(seed: int):
    """The split equals that of a plain loop over the images, so that older runs hold out the same images."""
    labels = torch.randint(-1, 40, (3000,), generator=torch.Generator().manual_seed(seed)).square().tolist()
    order = torch.randperm(len(labels), generator=keyed_generator(seed, "split")).tolist()
    ranks, seen = {}, Counter()
    for index in order:
        ranks[index] = seen[labels[index]]
        seen[labels[index]] += 1
    by_rank = sorted(order, key=lambda index: ranks[index] / seen[labels[index]])
    for count in (1, 700, 2850, 2999):
        assert split(labels, count, seed) == (sorted(by_rank[:count]), sorted(by_rank[count:]))
