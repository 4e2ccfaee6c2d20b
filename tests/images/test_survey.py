"""The survey of an image folder before training."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from accelerate import PartialState
from PIL import Image

from tests.conftest import launch, succeed, write_config
from vqvae2.codes import CodeStore
from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images import survey as module
from vqvae2.images.sources import open_images
from vqvae2.images.survey import survey_images, surveyor
from vqvae2.images.survey_record import Survey, read_record, record_path
from vqvae2.images.survey_summary import describe


def picture(path: Path, size: tuple[int, int] = (20, 10), orientation: int = 1) -> None:
    """Write a black image of (width, height) as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with three readable images in two classes (one with an EXIF rotation), a broken file and a text file."""
    root = tmp_path / "pictures"
    picture(root / "hat" / "a.jpg")
    picture(root / "hat" / "turned.jpg", (30, 12), orientation=6)
    picture(root / "shoe" / "c.png", (40, 50))
    (root / "hat" / "broken.jpg").write_bytes(b"no picture")
    (root / "notes.txt").write_text("notes")
    return root


def configuration(root: Path, **fields: object) -> ImagesConfig:
    """Return a configuration for 16x16 images."""
    return ImagesConfig(**{"source": "folder", "root": str(root), "size": 16, "workers": 0, **fields})


@pytest.mark.parametrize("workers", [0, 2])
def test_survey_finds_what_cannot_be_read(root: Path, tmp_path: Path, workers: int) -> None:
    """Sizes are those of the upright images; the unreadable file is listed in a separate file and not as an image."""
    images, record = configuration(root, workers=workers, max_unreadable_fraction=0.5), record_path(tmp_path, "x")
    survey = survey_images(root, images, record, frozen=False, show=False)
    assert [(x.name, x.label, x.width, x.height) for x in survey if x.error is None] == [
        ("hat/a.jpg", 0, 20, 10),
        ("hat/turned.jpg", 0, 12, 30),
        ("shoe/c.png", 1, 40, 50),
    ]
    assert list(survey.readable_names) == ["hat/a.jpg", "hat/turned.jpg", "shoe/c.png"]
    (line,) = (tmp_path / "survey" / "x_unreadable.txt").read_text().splitlines()
    assert line.startswith("hat/broken.jpg\t") and "cannot be read as an image" in line
    said = describe(survey, images, record)
    assert "3 images, 12x10 to 40x50 pixels, median 20x30" in said[0]
    assert said[1:3] == ["2 classes: hat 2, shoe 1", "warning: class shoe has one image"]
    assert said[3] == "2 of them are smaller than 16x16 pixels and are upscaled"
    assert said[4].startswith("1 files that are not images") and "1 files cannot be read" in said[5]


def test_files_that_have_not_changed_are_not_decoded_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only files with a changed size or modification time, or that could not be read, are decoded again.

    Deleted files are removed.
    """
    images, record = configuration(root, max_unreadable_fraction=0.5), tmp_path / "x.safetensors"
    first = survey_images(root, images, record, frozen=False, show=False)
    decoded: list[str] = []
    read = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path, *size: decoded.append(path.name) or read(path, *size))
    again = survey_images(root, images, record, frozen=False, show=False)
    assert list(again) == list(first) and decoded == ["broken.jpg"]
    decoded.clear()
    os.utime(root / "shoe" / "c.png", ns=(1, 1))
    picture(root / "hat" / "broken.jpg", (16, 16))
    (root / "hat" / "a.jpg").unlink()
    again = survey_images(root, images, record, frozen=False, show=False)
    assert sorted(decoded) == ["broken.jpg", "c.png"]
    assert list(again.readable_names) == ["hat/broken.jpg", "hat/turned.jpg", "shoe/c.png"]
    assert (tmp_path / "x_unreadable.txt").read_text() == ""


def test_once_training_has_begun_the_list_stands(root: Path, tmp_path: Path) -> None:
    """A frozen survey does not change when files are added or deleted, or when the folder is moved."""
    images = configuration(root, max_unreadable_fraction=0.5)
    before = surveyor(images, tmp_path / "run", show=False)(root)
    picture(root / "shoe" / "new.png")
    (root / "hat" / "a.jpg").unlink()
    moved = root.rename(tmp_path / "moved")
    after = surveyor(configuration(moved), tmp_path / "run", show=False)(moved)
    assert after == before._replace(folder=moved)


def test_too_many_unreadable_files_stop_the_run(root: Path, tmp_path: Path) -> None:
    """Too many unreadable files raise a UserError with the counts, the limit and the path of the list."""
    with pytest.raises(UserError, match=r"1 of 4 files cannot be read.*max_unreadable_fraction: 0\.2.*unreadable\.txt"):
        survey_images(root, configuration(root), tmp_path / "x.safetensors", frozen=False, show=False)
    assert "broken.jpg" in (tmp_path / "x_unreadable.txt").read_text()


def test_damaged_record_is_made_again(root: Path, tmp_path: Path) -> None:
    """A damaged survey file is recreated, even if the survey is frozen."""
    images, record = configuration(root, max_unreadable_fraction=0.5), tmp_path / "x.safetensors"
    survey = survey_images(root, images, record, frozen=False, show=False)
    content = record.read_bytes()
    for damaged in (content[:50], content[:-1], b"", content.replace(b"vqvae2 survey", b"another thing")):
        record.write_bytes(damaged)
        assert list(survey_images(root, images, record, frozen=True, show=False)) == list(survey)
        assert record.read_bytes() == content


def write_former_record(survey: Survey, path: Path) -> None:
    """Write a survey as earlier versions did."""
    files = [file._asdict() for file in survey]
    content = {"root": survey.root, "classes": survey.classes, "ignored": survey.ignored, "files": files}
    path.write_text(json.dumps(content, indent=0))


def test_records_of_earlier_versions_are_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON file of an earlier version is used unchanged once training has started, and is replaced before that."""
    images, record = configuration(root, max_unreadable_fraction=0.5), tmp_path / "x.safetensors"
    (root / "hat" / os.fsdecode(b"M\xe4rz.png")).write_bytes((root / "shoe" / "c.png").read_bytes())
    survey = survey_images(root, images, record, frozen=False, show=False)
    write_former_record(survey, tmp_path / "x.json")
    record.unlink()
    read = module.read_image
    decoded: list[str] = []
    monkeypatch.setattr(module, "read_image", lambda path, *given: decoded.append(path.name) or read(path, *given))
    (tmp_path / "elsewhere").mkdir()
    assert list(survey_images(tmp_path / "elsewhere", images, record, frozen=True, show=False)) == list(survey)
    assert not record.exists()
    assert list(survey_images(root, images, record, frozen=False, show=False)) == list(survey)
    assert decoded == ["broken.jpg"]  # what could not be read is tried again
    assert record.exists() and not (tmp_path / "x.json").exists()


def test_classes_may_be_added_before_training(root: Path, tmp_path: Path) -> None:
    """Files that have not changed get the labels of the new classes."""
    images, record = configuration(root, max_unreadable_fraction=0.5), tmp_path / "x.safetensors"
    survey_images(root, images, record, frozen=False, show=False)
    picture(root / "glove" / "g.png")
    again = survey_images(root, images, record, frozen=False, show=False)
    assert [(x.name, x.label) for x in again] == [
        ("glove/g.png", 0), ("hat/a.jpg", 1), ("hat/broken.jpg", 1), ("hat/turned.jpg", 1), ("shoe/c.png", 2)
    ]  # fmt: skip


def test_a_node_without_the_images_is_refused(root: Path, tmp_path: Path) -> None:
    """A process goes on without some of the first images, but not without all of them; one is named."""
    for i in range(20):
        picture(root / "shoe" / f"{i:02d}.png")
    images = configuration(root, max_unreadable_fraction=0.5, validation_fraction=0.2)
    splits = open_images(images, 0, surveyor(images, tmp_path / "run", show=False))
    first = splits.train.names[0]
    (root / first).unlink()
    module._check_readable(splits)
    shutil.rmtree(root)
    with pytest.raises(UserError) as raised:
        module._check_readable(splits)
    message = str(raised.value)
    assert message.startswith("none of the first 16 images can be read: put the images where every node can read them")
    assert str(root / first) in message and "No such file" in message


def survey_as(process: int, root: Path, folder: Path) -> None:
    """Survey `root` as one of two processes, twice, and write what was decoded and found to a file of this process."""
    os.environ |= {"RANK": str(process), "LOCAL_RANK": str(process), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getppid() % 20000)}
    PartialState._reset_state()
    state, decoded, read = PartialState(cpu=True), [], module.read_image
    module.read_image = lambda path, *size: decoded.append(path.name) or read(path, *size)
    if process != 0:
        module.list_images = None
    said: list[object] = []
    for fraction in (0.9, 0.1):
        images, record = configuration(root, max_unreadable_fraction=fraction), folder / f"{fraction}.safetensors"
        try:
            survey = survey_images(root, images, record, frozen=False, show=False, processes=state)
            said.append([list(file) for file in survey])
        except UserError as error:
            said.append(str(error))
    (folder / f"{process}.json").write_text(json.dumps([decoded[: len(decoded) // 2], said]))


def test_processes_share_the_survey(root: Path, tmp_path: Path) -> None:
    """Each of two processes decodes its own files, only the first lists the folder, and both get the same survey.

    A refusal by the main process reaches both.
    """
    for i in range(3):
        (root / "shoe" / f"broken_{i}.png").write_bytes(b"no picture")
    alone = survey_images(
        root, configuration(root, max_unreadable_fraction=0.9), tmp_path / "x.safetensors", frozen=False, show=False
    )
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=survey_as, args=(i, root, tmp_path), daemon=True) for i in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    (first, one), (second, other) = (json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1))
    assert sorted(first + second) == sorted(Path(x.name).name for x in alone) and len(first) - len(second) in (0, 1)
    assert one == other and one[0] == [list(x) for x in alone]
    assert "4 of 7 files cannot be read" in one[1]
    assert list(read_record(tmp_path / "0.9.safetensors")) == list(alone)


def test_stages_skip_what_cannot_be_read(tmp_path: Path) -> None:
    """Stage 1 prints the result of the survey and skips the unreadable file.

    Stage 2 replaces a file that was deleted after the survey by another image, stored under its own name.
    """
    root = tmp_path / "pictures"
    for i in range(40):
        picture(root / "hat" / f"{i:02d}.png", (32, 16))
    (root / "hat" / "broken.png").write_bytes(b"no picture")
    config = write_config(tmp_path, tmp_path / "run")
    flags = ["--config", str(config), "--images.source", "folder", "--images.root", str(root)]
    out = succeed("stage1", *flags)
    assert "40 images, 32x16 to 32x16 pixels" in out and "1 files cannot be read and are skipped" in out
    assert len(read_record(record_path(tmp_path / "run", "train"))) == 41
    (root / "hat" / "07.png").unlink()
    out = launch("stage2", *flags, processes=2)
    store = CodeStore(tmp_path / "run" / "codes" / "train.lmdb")
    held_out = CodeStore(tmp_path / "run" / "codes" / "validation.lmdb")
    found = [record.name for record in [*store, *held_out]]
    assert len(found) == 40 and len(set(found)) == 39 and "hat/07.png" not in found and "hat/broken.png" not in found
