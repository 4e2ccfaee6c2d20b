"""Image sets of each source: folders, shapes and torchvision."""

import gzip
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.grids import save_image
from vqvae2.images.image_sets import ImageSet, with_cropped_copies, with_flipped_copies
from vqvae2.images.sources import SHAPES_TRAIN, open_images

FASHION_MNIST = Path(__file__).parents[3] / "shared" / "data" / "fashion-mnist"


def colour(index: int) -> tuple[int, int, int]:
    """Return a distinct color for each index."""
    return (index * 7 % 256, index * 13 % 256, index)


def paint(root: Path, count: int, *classes: str) -> Path:
    """Write `count` 4x4 images of distinct colors to each class folder, or to `root` if there are no classes."""
    for c, name in enumerate(classes or ("",)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (4, 4), colour(c * count + i)).save(root / name / f"{i:03d}.png")
    return root


def folder(root: Path, **fields) -> ImagesConfig:
    """Return the configuration of a folder of 4x4 images."""
    return ImagesConfig(source="folder", root=str(root), size=4, validation_fraction=0.2, **fields)


def colours(images: ImageSet) -> set[tuple[int, ...]]:
    """Return the colors of the images of a set."""
    return {tuple(images.load(i)[:, 0, 0].tolist()) for i in range(len(images))}


def test_a_folder_is_split(tmp_path: Path):
    """The two parts are disjoint, contain every image with its label, and have the configured sizes."""
    train, validation = open_images(folder(paint(tmp_path, 10, "hat", "shoe")), seed=0)
    assert (len(train), len(validation)) == (16, 4) and sorted(validation.labels) == [0, 0, 1, 1]
    assert not colours(train) & colours(validation) and len(colours(train) | colours(validation)) == 20
    for part in (train, validation):
        assert part.classes == ["hat", "shoe"]
        assert [part.classes[x] for x in part.labels] == [name.split("/")[0] for name in part.names]
        for i, name in enumerate(part.names):
            assert tuple(part.load(i)[:, 0, 0]) == colour(10 * part.labels[i] + int(name[-7:-4]))


def test_a_folder_too_small_to_split_is_refused(tmp_path: Path):
    """A split without validation images raises a UserError with the numbers."""
    with pytest.raises(UserError, match=r"images\.validation_fraction: 0\.2 of 2 images holds out 0"):
        open_images(folder(paint(tmp_path, 2)), seed=0)


def test_a_validation_folder_is_used(tmp_path: Path):
    """With validation_root, all images of root are for training, and validation labels index the training classes."""
    paint(tmp_path / "train", 3, "boot", "hat", "shoe")
    paint(tmp_path / "held_out", 2, "shoe")
    config = folder(tmp_path / "train", validation_root=str(tmp_path / "held_out"))
    train, validation = open_images(config, seed=0)
    assert len(train) == 9 and train.classes == validation.classes == ["boot", "hat", "shoe"]
    assert list(validation.labels) == [2, 2] and colours(validation) == {colour(0), colour(1)}


@pytest.mark.parametrize("classes", [("shoe", "sock"), ()])
def test_a_validation_folder_of_other_classes_is_refused(tmp_path: Path, classes: tuple[str, ...]):
    """A validation folder with an unknown class or without classes raises a UserError with the lists of classes."""
    paint(tmp_path / "train", 3, "hat", "shoe")
    paint(tmp_path / "held_out", 2, *classes)
    with pytest.raises(UserError, match=r"held_out: its classes .*\['hat', 'shoe'\]"):
        open_images(folder(tmp_path / "train", validation_root=str(tmp_path / "held_out")), seed=0)


def test_fewer_images_on_request(tmp_path: Path):
    """max_images limits the training images, balanced over classes, and does not change the validation set."""
    config = folder(paint(tmp_path, 20, "hat", "shoe"))
    full = open_images(config, seed=0)
    few = open_images(folder(tmp_path, max_images=8), seed=0)
    assert few.validation.names == full.validation.names
    assert set(few.train.names) < set(full.train.names) and sorted(few.train.labels) == [0] * 4 + [1] * 4
    for i, name in enumerate(few.train.names):
        assert torch.equal(few.train.load(i), full.train.load(full.train.names.index(name)))
    assert open_images(folder(tmp_path, max_images=1000), seed=0).train.names == full.train.names


def test_shapes_splits_are_disjoint():
    """Training and validation pictures differ, and the labels cycle through all classes."""
    train, validation = open_images(ImagesConfig(source="shapes", size=16, max_images=64), seed=0)
    assert len(train) == 64 and list(train.labels) == [i % 8 for i in range(64)] and len(train.classes) == 8
    seen = {train.load(i).numpy().tobytes() for i in range(64)}
    held_out = {validation.load(i).numpy().tobytes() for i in range(64)}
    assert len(seen) == len(held_out) == 64 and not seen & held_out
    assert not set(train.names) & set(validation.names)


def test_shapes_have_their_documented_number():
    """Without max_images there are 20000 training pictures."""
    train, _ = open_images(ImagesConfig(source="shapes", size=16), seed=0)
    assert len(train) == SHAPES_TRAIN == 20_000


def test_shapes_follow_seed_and_channels():
    """Another seed gives different pictures; with one channel a picture is the luma of the RGB picture."""
    three = open_images(ImagesConfig(source="shapes", size=16), seed=0).train.load(5)
    one = open_images(ImagesConfig(source="shapes", size=16, channels=1), seed=0).train.load(5)
    assert not torch.equal(three, open_images(ImagesConfig(source="shapes", size=16), seed=1).train.load(5))
    luma = (three * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    assert (one[0] - luma).abs().max() <= 1


def test_a_torchvision_set_without_parts_is_split(monkeypatch: pytest.MonkeyPatch):
    """A torchvision dataset without a predefined split is split; images and labels are those of torchvision."""
    import torchvision.datasets

    class FakeData(torchvision.datasets.FakeData):
        def __init__(self):
            super().__init__(size=20, image_size=(3, 8, 8), num_classes=4)

    monkeypatch.setattr(torchvision.datasets, "FakeData", FakeData)
    config = ImagesConfig(source="torchvision:FakeData", size=8, validation_fraction=0.25)
    train, validation = open_images(config, seed=0)
    assert (len(train), len(validation)) == (15, 5) and not set(train.names) & set(validation.names)
    for part in (train, validation):
        for i, name in enumerate(part.names):
            image, label = FakeData()[int(name)]
            assert np.array_equal(part.load(i).permute(1, 2, 0).numpy(), np.asarray(image))
            assert part.labels[i] == int(label)


def test_a_torchvision_folder_keeps_no_list_of_objects(tmp_path: Path):
    """A dataset of torchvision that lists files gives the images of torchvision, from a list that workers share."""
    paint(tmp_path, 10, "hat", "shoe")
    config = ImagesConfig(source="torchvision:ImageFolder", root=str(tmp_path), size=4, validation_fraction=0.2)
    train, validation = open_images(config, seed=0)
    plain = torchvision.datasets.ImageFolder(str(tmp_path))
    assert train.classes == ["hat", "shoe"] and sorted([*train.names, *validation.names]) == [
        f"{i:06d}" for i in range(20)
    ]
    for images in (train, pickle.loads(pickle.dumps(train)), validation):
        for i, name in enumerate(images.names):
            image, label = plain[int(name)]
            assert np.array_equal(images.load(i).permute(1, 2, 0).numpy(), np.asarray(image))
            assert images.labels[i] == label
    packed = train.load.load.dataset
    assert packed.imgs is packed.samples and list(packed.samples) == plain.samples
    assert not isinstance(packed.samples, list) and not isinstance(packed.targets, list)


def test_an_unknown_torchvision_set_is_refused():
    """A name that is not a torchvision dataset raises a UserError that quotes it."""
    for name in ("Nonsense", "mnist"):
        with pytest.raises(UserError, match=f"torchvision.datasets has no {name}"):
            open_images(ImagesConfig(source=f"torchvision:{name}"), seed=0)


def test_a_torchvision_set_that_is_not_there_is_named(tmp_path: Path):
    """A dataset that cannot be downloaded raises a UserError with its name and folder."""
    with pytest.raises(UserError, match=rf"ImageNet cannot be opened \(images\.root: {tmp_path}\)"):
        open_images(ImagesConfig(source="torchvision:ImageNet", root=str(tmp_path)), seed=0)


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="needs the files of Fashion-MNIST")
def test_fashion_mnist(tmp_path: Path):
    """For a torchvision dataset with a predefined split, sizes, labels and pixels are those of the original files."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in FASHION_MNIST.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    of = {"source": "torchvision:FashionMNIST", "root": str(tmp_path)}
    config = ImagesConfig(**of, size=28, channels=1, max_images=1000)
    train, validation = open_images(config, seed=0)
    content = (raw / "t10k-images-idx3-ubyte").read_bytes()
    magic, count, *sides = struct.unpack(">4i", content[:16])
    assert (magic, sides) == (2051, [28, 28]) and (len(train), len(validation)) == (1000, count)
    sizes = Counter(train.labels).values()
    assert len(train.classes) == len(sizes) == 10 and max(sizes) - min(sizes) <= 30
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, 28, 28)
    labels = np.frombuffer((raw / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    assert list(validation.labels) == labels.tolist()
    assert all(np.array_equal(validation.load(i).numpy(), pixels[i]) for i in (0, 17, count - 1))


def test_flipped_copies_follow_the_images(tmp_path: Path):
    """The flipped copies come after the images, with unique names and the labels of the originals."""
    images = open_images(ImagesConfig(source="shapes", size=16, max_images=10), seed=0).train
    both = with_flipped_copies(images)
    assert len(both) == len(set(both.names)) == 20 and both.labels == images.labels * 2
    for i in range(10):
        assert torch.equal(both.load(i), images.load(i))
        assert torch.equal(both.load(10 + i), images.load(i).flip(-1))


def test_cropped_copies_follow_the_images(tmp_path: Path):
    """Each copy is another crop of its image, which depends on the seed alone; flipped copies of all follow."""
    for i in range(3):
        save_image(torch.arange(256, dtype=torch.uint8).view(1, 16, 16) + 3 * i, tmp_path / f"{i}.png")
    config = ImagesConfig(source="folder", root=str(tmp_path), size=8, channels=1, validation_fraction=0.34)
    images = open_images(config, seed=0).train
    copies = with_cropped_copies(images, 2, (0.3, 0.6), seed=5)
    count = len(images)
    assert len(copies) == len(set(copies.names)) == 3 * count and copies.labels == images.labels * 3
    assert copies.names[count] == f"{images.names[0]} cropped 1" and list(copies.names)[-1].endswith(" cropped 2")
    loaded = [copies.load(i) for i in range(len(copies))]
    assert all(torch.equal(x, images.load(i)) for i, x in enumerate(loaded[:count]))
    assert len({tuple(x.flatten().tolist()) for x in loaded}) == 3 * count
    again = [with_cropped_copies(images, 2, (0.3, 0.6), seed).load(count) for seed in (5, 6)]
    assert torch.equal(again[0], loaded[count]) and not torch.equal(again[1], loaded[count])
    both = with_flipped_copies(copies)
    assert len(set(both.names)) == 6 * count and torch.equal(both.load(4 * count), loaded[count].flip(-1))
