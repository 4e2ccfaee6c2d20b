"""Image sets of the `datasets` library, from data sets that the tests write."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import succeed, write_config
from vqvae2 import stages
from vqvae2.codes import CodeStore
from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.huggingface import open_rows
from vqvae2.images.image_sets import ImageSet, with_flipped_copies
from vqvae2.images.row_survey import row_surveyor, survey_rows
from vqvae2.images.sources import open_images
from vqvae2.images.survey_record import record_path
from vqvae2.images.survey_summary import describe

datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
NAMES = ["hat", "shoe"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the library's cache in a temporary folder, and the library offline."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with five PNG and five JPEG files of noise in two class folders."""
    draw = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / "pictures" / NAMES[i % 2] / f"{i}.{('png', 'jpg')[i // 5]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 30, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


def table(pictures: Path, label: object = None, **features: object) -> "datasets.Dataset":
    """Return the files of a folder as rows with the columns image and label, and others with the same images."""
    files = sorted(x for x in pictures.rglob("*.*") if x.is_file())
    images = [{"bytes": x.read_bytes(), "path": x.relative_to(pictures).as_posix()} for x in files]
    kind = label or datasets.ClassLabel(names=NAMES)
    labels = [NAMES.index(x.parent.name) if isinstance(kind, datasets.ClassLabel) else x.parent.name for x in files]
    columns = {"image": images, "label": labels, **{name: images for name in features}}
    return datasets.Dataset.from_dict(
        columns, datasets.Features({"image": datasets.Image(), "label": kind, **features})
    )


def test_large_binary_columns_hold_images_and_splits_without_the_labels_are_skipped(
    pictures: Path, tmp_path: Path
) -> None:
    """A held-out split that lacks the column of labels is not used; a list of integers is no image."""
    whole = table(pictures)
    encoded = [x["bytes"] for x in whole.cast_column("image", datasets.Image(decode=False))["image"]]
    kinds = datasets.Features({"image": datasets.Value("large_binary"), "label": whole.features["label"]})
    train = datasets.Dataset.from_dict({"image": encoded, "label": whole["label"][:]}, kinds)
    parts = datasets.DatasetDict(train=train, test=train.remove_columns("label"))
    parts.save_to_disk(tmp_path / "saved")
    rows, held_out = open_rows(configuration(tmp_path / "saved", image_column="image", label_column="label"))
    assert len(rows) == 10 and held_out is None and rows.file(3) == encoded[3]

    numbers = datasets.Dataset.from_dict({"image": [{"bytes": [1, 2], "path": "x"}]})
    numbers.save_to_disk(tmp_path / "numbers")
    with pytest.raises(UserError, match="column image does not hold images"):
        open_rows(configuration(tmp_path / "numbers", image_column="image"))


def configuration(root: Path, **fields: object) -> ImagesConfig:
    """Return a configuration for 16x16 images of a local data set."""
    values = {"source": "huggingface", "root": str(root), "size": 16, "validation_fraction": 0.2, "workers": 0}
    return ImagesConfig(**{**values, **fields})


def content(*parts: ImageSet) -> dict[str, tuple[str, bytes]]:
    """Return the class and the pixels of each image by its name."""
    return {
        part.names[i]: (part.classes[part.labels[i]], part.load(i).numpy().tobytes())
        for part in parts
        for i in range(len(part))
    }


def by_file(images: dict[str, tuple[str, bytes]]) -> dict[str, tuple[str, bytes]]:
    """Return the images by the names of their files, of which alone save_to_disk keeps track."""
    return {Path(name).name: image for name, image in images.items()}


@pytest.mark.parametrize("layout", ["imagefolder", "parquet", "save_to_disk"])
def test_every_layout_gives_what_the_folder_source_gives(pictures: Path, tmp_path: Path, layout: str) -> None:
    """Names, classes and pixels are those of the same files read by source folder; the split has the same sizes."""
    root = pictures if layout == "imagefolder" else tmp_path / "data"
    if layout == "parquet":
        root.mkdir()
        table(pictures).to_parquet(root / "train.parquet")
    elif layout == "save_to_disk":
        table(pictures).save_to_disk(root)
    expected = open_images(configuration(pictures, source="folder"), seed=0)
    splits = open_images(configuration(root), seed=0)
    assert splits.train.classes == NAMES and [len(x) for x in splits] == [len(x) for x in expected] == [8, 2]
    named = by_file(content(*expected)) if layout == "save_to_disk" else content(*expected)
    assert content(*splits) == named and len(named) == 10
    few = open_images(configuration(root, max_images=4), seed=0).train
    assert sorted(few.labels) == [0, 0, 1, 1] and content(few).items() < content(splits.train).items()
    assert len(set(with_flipped_copies(few).names)) == 8
    again = pickle.loads(pickle.dumps(few.load))  # as for workers that are not forked
    assert torch.equal(again(3), few.load(3))


def test_the_split_held_out_is_validation_else_test_with_labels(pictures: Path, tmp_path: Path) -> None:
    """The split validation comes before test; a test split whose labels are all missing is not used."""
    rows = table(pictures)
    hidden = rows.map(lambda row: {"label": -1}).cast(rows.features)
    cases = {
        "both": ({"train": rows, "test": rows.select([0]), "validation": rows.select([8, 9])}, (10, 2)),
        "test": ({"train": rows, "test": rows.select([0])}, (10, 1)),
        "hidden": ({"train": rows, "test": hidden}, (8, 2)),
    }
    for name, (parts, sizes) in cases.items():
        datasets.DatasetDict(parts).save_to_disk(tmp_path / name)
        splits = open_images(configuration(tmp_path / name), seed=0)
        assert (len(splits.train), len(splits.validation)) == sizes, name
    held_out = open_images(configuration(tmp_path / "both"), seed=0).validation
    assert set(content(held_out)) == {"7.jpg", "9.jpg"}  # the last two


def test_labels_of_text_and_of_integers_become_classes(pictures: Path, tmp_path: Path) -> None:
    """A column label of text gives its sorted values as classes, integers in the order of the numbers."""
    table(pictures, datasets.Value("string")).save_to_disk(tmp_path / "text")
    expected = open_images(configuration(pictures, source="folder"), seed=0)
    assert content(*open_images(configuration(tmp_path / "text"), seed=0)) == by_file(content(*expected))
    numbers = table(pictures).remove_columns("label").add_column("digit", [10, 2] * 5)
    numbers.save_to_disk(tmp_path / "numbers")
    assert open_images(configuration(tmp_path / "numbers"), seed=0).train.classes == []
    named = open_images(configuration(tmp_path / "numbers", label_column="digit"), seed=0).train
    assert named.classes == ["2", "10"] and sorted(named.labels) == [0] * 4 + [1] * 4


def test_columns_can_be_named(pictures: Path, tmp_path: Path) -> None:
    """Of two image columns, the named one is read; encoded images without the type Image can be named, too."""
    rows = table(pictures, other=datasets.Image())
    rows.save_to_disk(tmp_path / "two")
    expected = content(*open_images(configuration(pictures, source="folder"), seed=0))
    assert content(*open_images(configuration(tmp_path / "two", image_column="other"), seed=0)) == by_file(expected)
    plain = rows.cast_column("image", datasets.Image(decode=False))[:]
    encoded = datasets.Dataset.from_dict({"data": [x["bytes"] for x in plain["image"]], "label": plain["label"]})
    encoded.cast_column("label", datasets.ClassLabel(names=NAMES)).save_to_disk(tmp_path / "bytes")
    splits = open_images(configuration(tmp_path / "bytes", image_column="data"), seed=0)
    assert sorted(content(*splits).values()) == sorted(expected.values())
    assert sorted(content(*splits)) == [f"{i:06d}" for i in range(10)]  # the rows have no paths


REFUSED = {
    "no images": (lambda x: x.remove_columns("image"), {}, r"no column of images \(its columns: label\).*image_column"),
    "two": (lambda x: x.add_column("more", [None] * 10, feature=datasets.Image()), {}, "image, more: .*image_column"),
    "labels": (lambda x: x.add_column("fine", [0] * 10, feature=datasets.ClassLabel(names=["a"])), {}, "label, fine: "),
    "empty": (lambda x: x.select([]), {}, "cannot be opened as a data set.*with at least one row"),
    "unknown": (None, {"image_column": "photo"}, "images.image_column: no column photo: use one of image, label"),
    "no label": (None, {"label_column": "breed"}, "images.label_column: no column breed: use one of image, label"),
    "not images": (None, {"image_column": "label"}, "column label does not hold images"),
    "not labels": (None, {"label_column": "image"}, "column image is neither of classes nor of text"),
    "missing": (lambda x: x.map(lambda _, i: {"label": i - 1 if i < 2 else 1}, with_indices=True).cast(x.features), {},
                "1 of 10 rows of split train have no label"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_data_set_without_the_right_columns_is_refused(pictures: Path, tmp_path: Path, case: str) -> None:
    """The message is one line that names the data set, its columns and the field to set."""
    change, fields, message = REFUSED[case]
    rows = table(pictures)
    (tmp_path / "data").mkdir()
    (change(rows) if change else rows).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(UserError, match=message) as refused:
        open_images(configuration(tmp_path / "data", **fields), seed=0)
    assert "\n" not in str(refused.value) and str(tmp_path / "data") in str(refused.value)


def test_a_data_set_that_cannot_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing or empty folder, no network, an unknown repository and a missing library are told apart."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"no parquet")
    hub = {"source": "huggingface:no-one/nothing"}

    def refused(fields: dict[str, object], message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            open_images(ImagesConfig(**{"source": "huggingface", **fields}), seed=0)
        assert "\n" not in str(error.value)

    def absent(name: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset doesn't exist on the Hub")

    refused({"root": str(tmp_path / "nowhere")}, "nowhere: no such folder: set images.root")
    refused({"root": str(tmp_path / "empty")}, "empty: cannot be opened as a data set.*parquet files, of save_to_disk")
    refused({"root": str(tmp_path / "broken")}, "broken: cannot be opened as a data set")
    refused(hub, "no-one/nothing: cannot be opened as a data set.*check the network and HF_HUB_OFFLINE")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: datasets.DatasetDict(train=datasets.Dataset.from_dict({}))
    )
    refused(hub, "no-one/nothing: split train is empty")
    monkeypatch.setattr(datasets, "load_dataset", absent)
    refused(hub, "no-one/nothing: data set not found on the Hub: check the name.*hf auth login")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(hub, r"needs the package datasets: run pip install 'vqvae2\[datasets\]'")


def test_a_repository_is_loaded_by_its_name(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gets the name, and that of the configuration if there is one; the images are those of the folder."""
    asked: list[tuple[str, ...]] = []

    def load_dataset(*names: str) -> "datasets.DatasetDict":
        asked.append(names)
        return datasets.DatasetDict(train=table(pictures))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = content(*open_images(configuration(pictures, source="folder"), seed=0))
    for name in ("user/pictures", "user/pictures:small"):
        images = ImagesConfig(source=f"huggingface:{name}", size=16, validation_fraction=0.2, workers=0)
        assert content(*open_images(images, seed=0)) == expected and len(expected) == 10
        assert open_rows(images)[0].title == f"{name}, split train"
    assert asked == 2 * [("user/pictures",)] + 2 * [("user/pictures", "small")]


def test_one_of_several_configurations_has_to_be_named(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message lists them and shows the form that names one; the network is not blamed."""
    clone, rows = tmp_path / "clone", table(pictures)
    for name, count in (("large", 10), ("small", 6)):
        (clone / name).mkdir(parents=True)
        rows.select(range(count)).to_parquet(clone / name / "train.parquet")
    configurations = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("large", "small")]
    (clone / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configurations})}---\n")
    for function in ("load_dataset", "get_dataset_config_names"):  # the clone in place of the repository
        original = getattr(datasets, function)
        monkeypatch.setattr(datasets, function, lambda name, *rest, original=original: original(str(clone), *rest))
    assert len(open_rows(ImagesConfig(source="huggingface:user/pictures:small"))[0]) == 6
    listed = "one of its 2 configurations is needed, large, small"
    form = "set images.source to one, such as huggingface:user/pictures:large"
    for images, message in (
        (ImagesConfig(source="huggingface:user/pictures"), f"^user/pictures: {listed}: {form}$"),
        (ImagesConfig(source="huggingface:user/pictures:huge"), f"^user/pictures:huge: {listed}: {form}$"),
        (configuration(clone), f"clone: {listed}: set images.root to a folder with the files of one$"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(images, seed=0)


def test_other_splits_that_do_not_fit_are_refused(pictures: Path, tmp_path: Path) -> None:
    """A held-out label that no training row has, and splits without train, are named."""
    rows = table(pictures, datasets.Value("string"))
    datasets.DatasetDict(train=rows.select([0, 1]), test=rows.select([9])).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match="split test has labels that split train lacks, such as shoe"):
        open_images(configuration(tmp_path / "other"), seed=0)
    datasets.DatasetDict(test=rows, extra=rows).save_to_disk(tmp_path / "untrained")
    with pytest.raises(UserError, match="has no split train, only test, extra"):
        open_images(configuration(tmp_path / "untrained"), seed=0)


def test_rows_that_cannot_be_read_are_skipped(pictures: Path, tmp_path: Path) -> None:
    """Unreadable rows are listed and skipped, up to max_unreadable_fraction; training then keeps its list of rows."""
    (pictures / "hat" / "2.png").write_bytes(b"no picture")
    rows = table(pictures)
    rows.save_to_disk(tmp_path / "data")
    images = configuration(tmp_path / "data", max_unreadable_fraction=0.1)
    record = record_path(tmp_path, "train")
    survey = survey_rows(open_rows(images)[0], images, record, frozen=False, show=False)
    said = describe(survey, images, record)
    assert "9 images, 30x20 to 30x20 pixels" in said[0] and "1 files cannot be read and are skipped" in said[-1]
    surveyed = row_surveyor(images, tmp_path, show=False)
    splits = open_images(images, 0, sift=surveyed)
    assert len(content(*splits)) == 9 and "2.png" not in content(*splits)
    (line,) = (tmp_path / "survey" / "train_unreadable.txt").read_text().splitlines()
    assert line.startswith("2.png\t") and "row 1 (2.png): cannot be read as an image" in line
    strict = configuration(tmp_path / "data", max_unreadable_fraction=0.05)
    with pytest.raises(UserError, match="1 of 10 files cannot be read"):
        survey_rows(open_rows(strict)[0], strict, tmp_path / "strict", frozen=False, show=False)
    rows.select(range(9)).save_to_disk(tmp_path / "fewer")
    with pytest.raises(UserError, match="its rows are not those that this run was started with"):
        open_images(configuration(tmp_path / "fewer"), 0, sift=surveyed)


def test_workers_survey_as_the_main_process_does(pictures: Path, tmp_path: Path) -> None:
    """Two workers find the same files."""
    found = []
    for workers in (0, 2):
        images = configuration(pictures, workers=workers)
        found.append(survey_rows(open_rows(images)[0], images, tmp_path / "x", frozen=False, show=False))
    assert list(found[0]) == list(found[1]) and len(found[0].readable) == 10


def test_stages_run_on_a_data_set(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages 1 and 2 train and encode; the code stores hold every image by name and class.

    A training that is interrupted after its first checkpoint ends with the same weights.
    """
    monkeypatch.setattr(stages, "write_report", lambda run_dir: None)
    table(pictures).save_to_disk(tmp_path / "data")
    run = tmp_path / "run"
    flags = ["--config", str(write_config(tmp_path, run)), "--images.source", "huggingface"]
    flags += ["--images.root", str(tmp_path / "data"), "--images.validation_fraction", "0.2"]
    said = succeed("stage1", *flags)
    assert "10 images, 30x20 to 30x20 pixels" in said and "8 training images, 2 held out" in said
    succeed("stage2", *flags)
    stores = [CodeStore(run / "codes" / f"{part}.lmdb") for part in ("train", "validation")]
    found = {store[i].name: store[i].label for store in stores for i in range(len(store))}
    assert found == {x.name: NAMES.index(x.parent.name) for x in pictures.rglob("*.*")}
    assert json.loads((run / "stage1" / "model.json").read_text())["classes"] == NAMES
    weights = run / "stage1" / "model.safetensors"
    uninterrupted = weights.read_bytes()
    for path in (weights, weights.with_name("model.json")):
        path.unlink()
    shutil.rmtree(run / "stage1" / "checkpoints" / "step_00000004")
    assert "going on from step 2" in succeed("stage1", *flags)
    assert weights.read_bytes() == uninterrupted
