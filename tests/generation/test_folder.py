"""Reconstruction of a folder of images: the table, the pictures, resuming and invalid input."""

import csv
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from tests.conftest import refusal, succeed
from vqvae2 import Generator
from vqvae2.errors import UserError
from vqvae2.generation import folder
from vqvae2.generation.folder import picture_path, reconstruct_folder
from vqvae2.generation.opening import reconstructions_folder
from vqvae2.images.distances import mse
from vqvae2.images.similarity import ssim
from vqvae2.run import launch


@pytest.fixture(scope="module")
def generator(tiny_run: tuple[Path, Path]) -> Generator:
    return Generator.from_run(tiny_run[1], device="cpu", dtype="float32")


def write_images(root: Path, count: int = 18) -> None:
    """Random images, alternately in the folder of a class and in another one, and a file that is no image."""
    random = np.random.default_rng(0)
    for i in range(count):
        path = root / ("star" if i % 2 else "other/deep") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(16, 32, 3), dtype=np.uint8)).save(path)
    (root / "broken.png").write_bytes(b"no image")


def rows(table: Path) -> list[dict[str, str]]:
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


def run(generator: Generator, images: Path, output: Path, **options: bool) -> Path:
    return reconstruct_folder(generator, images, PartialState(cpu=True), output, workers=0, **options)


def test_table_and_pictures_are_those_of_single_images(generator: Generator, tmp_path: Path) -> None:
    """Each row has the metrics of its image, given its class if its folder names one; the least likely comes first."""
    write_images(tmp_path / "in")
    table = rows(run(generator, tmp_path / "in", tmp_path / "out"))
    assert len(table) == 18
    bits = [float(row["bits_per_dimension"]) for row in table]
    assert bits == sorted(bits, reverse=True)
    for row in (next(x for x in table if x["name"].startswith(start)) for start in ("star", "other")):
        image = generator.read_image(tmp_path / "in" / row["name"])
        label = "star" if row["name"].startswith("star") else "none"
        decoded = generator.decode(generator.encode(image))
        likelihood = generator.log_likelihood(image, [label])
        assert float(row["mse"]) == pytest.approx(float(mse(image, decoded)), rel=1e-3)
        assert float(row["ssim"]) == pytest.approx(float(ssim(image, decoded)), abs=1e-3)
        nats = {level: float(x) for level, x in likelihood.nats.items()}
        assert all(float(row[f"nats_{level}"]) == pytest.approx(x, rel=1e-3) for level, x in nats.items())
        assert float(row["bytes"]) == pytest.approx(sum(nats.values()) / math.log(2) / 8, rel=1e-3)
        written = np.array(Image.open(tmp_path / "out" / "pictures" / f"{row['name']}.png"))
        assert np.abs(written.astype(int) - decoded[0].permute(1, 2, 0).numpy()).max() <= 1
    assert (tmp_path / "out" / "unreadable.txt").read_text().startswith("broken.png\t")


def test_stopped_run_resumes_and_changed_images_start_over(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """After a failure in the second batch, only that batch is computed; a changed file reconstructs all again."""
    write_images(tmp_path / "in")
    calls, original = [], folder._write_batch

    def failing(*arguments):
        calls.append(arguments[2][0])
        if len(calls) == 2:
            raise UserError("disk full")
        return original(*arguments)

    monkeypatch.setattr(folder, "_write_batch", failing)
    with pytest.raises(UserError, match="disk full"):
        run(generator, tmp_path / "in", tmp_path / "out")
    resumed = rows(run(generator, tmp_path / "in", tmp_path / "out"))
    assert calls == [0, 16, 16] and len(resumed) == 18
    run(generator, tmp_path / "in", tmp_path / "out")
    assert len(calls) == 3 and "finished before" in capsys.readouterr().out
    (tmp_path / "in" / "star" / "01.png").unlink()
    assert len(rows(run(generator, tmp_path / "in", tmp_path / "out"))) == 17
    assert "starting over" in capsys.readouterr().out
    assert not (tmp_path / "out" / "pictures" / "star" / "01.png.png").exists()


def test_without_priors_the_likelihood_is_empty(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    """With stage 1 alone, images and errors are written and the likelihood columns are empty."""
    shutil.copytree(tiny_run[1] / "stage1", tmp_path / "run" / "stage1")
    write_images(tmp_path / "in", 3)
    generator = Generator.from_run(tmp_path / "run", device="cpu", dtype="float32")
    table = rows(run(generator, tmp_path / "in", tmp_path / "out", beside=True))
    assert all(row["bits_per_dimension"] == row["nats_top"] == row["bytes"] == "" for row in table)
    errors = [float(row["mse"]) for row in table]
    assert errors == sorted(errors, reverse=True)
    shown = Image.open(tmp_path / "out" / "pictures" / f"{table[0]['name']}.png")
    original = generator.read_image(tmp_path / "in" / table[0]["name"])
    made = generator.reconstruct(original)
    for left, image in ((2, original), (36, made.coarsest), (70, made.images)):
        pixels = torch.from_numpy(np.array(shown))[2:18, left : left + 32].permute(2, 0, 1)
        assert (pixels.int() - image[0].int()).abs().max() <= 1
    assert (made.coarsest.int() - made.images.int()).abs().max() > 1


def test_missing_priors_are_looked_for_once(
    tiny_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each batch, since loading those that are trained takes time."""
    write_images(tmp_path / "in")
    generator, tried = Generator.from_run(tiny_run[1], device="cpu", dtype="float32"), list[str]()

    def missing() -> None:
        tried.append("priors")
        raise UserError("stage 4 has not finished")

    monkeypatch.setattr(generator, "_load_priors", missing)
    assert len(rows(run(generator, tmp_path / "in", tmp_path / "out"))) == 18  # two batches
    assert tried == ["priors"]


def test_bits_per_dimension_are_added_when_they_become_known(
    evaluated_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A run of an earlier version has them after its evaluation: the same command then starts over, once.

    A record of an earlier version, which lacks the pixel variance, does not start over.
    """
    write_images(tmp_path / "in", 1)
    copy, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(evaluated_run, copy, ignore=shutil.ignore_patterns("codes", "samples", "evaluation*"))
    description = json.loads((copy / "stage1" / "model.json").read_text())
    del description["pixel_variance"]
    (copy / "stage1" / "model.json").write_text(json.dumps(description))

    def bits() -> str:
        generator = Generator.from_run(copy, device="cpu", dtype="float32")
        return rows(run(generator, tmp_path / "in", out))[0]["bits_per_dimension"]

    assert bits() == "" and "run pipelines/evaluate.py" in capsys.readouterr().out
    shutil.copy(evaluated_run / "evaluation.json", copy)
    assert float(bits()) > 0 and "starting over" in capsys.readouterr().out
    record = json.loads((out / "made_of.json").read_text())
    assert record.pop("pixel_variance") > 0
    for _ in range(2):
        bits()
        assert "finished before" in capsys.readouterr().out
        (out / "made_of.json").write_text(json.dumps(record))


def test_default_folders_and_models(
    generator: Generator, tiny_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run, inside it; of models of two users with the same name, apart. A saved model gives the table of its run.

    The reconstructions of another saved model are kept.
    """
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "in", 2)
    shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns("codes", "samples"))
    generator.save_pretrained(tmp_path / "a" / "leaves")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    folders = {"run": "run/reconstructions/in", "a/leaves": "reconstructions/a/leaves/in"}
    folders |= {"b/leaves": "reconstructions/b/leaves/in", "./b/leaves": "reconstructions/leaves/in"}
    tables = []
    for name, place in folders.items():
        flag = "--run_dir" if name == "run" else "--model"
        out = succeed("reconstruct", flag, name, "--images", "in", "--workers", "0", "--dtype", "float32")
        assert f"table: {place}/images.csv; pictures: {place}/pictures" in out
        tables.append((tmp_path / place / "images.csv").read_bytes())
        assert (tmp_path / place / "pictures" / "star" / "01.png.png").exists()
    assert len(set(tables)) == 1
    assert reconstructions_folder(generator, None, Path("x"), "chosen") == Path("chosen")
    assert reconstructions_folder(SimpleNamespace(run_dir=None), "mnist", Path("x")) == Path("reconstructions/mnist/x")
    record = tmp_path / "reconstructions" / "a" / "leaves" / "in" / "made_of.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "weights": "00000000"}))
    message = refusal("reconstruct", "--model", "a/leaves", "--images", "in", "--workers", "0", "--dtype", "float32")
    assert "has the reconstructions of another model: give another --output" in message
    assert record.with_name("images.csv").read_bytes() == tables[0]


def test_a_long_file_name_is_shortened_in_pictures_only(generator: Generator, tmp_path: Path) -> None:
    """Two names with the same beginning have two pictures; the table has the whole names."""
    image = generator.sample(1, batch_size=1)[0].permute(1, 2, 0).numpy()
    names = [f"{'é' * 124}{i}.png" for i in range(2)]  # 253 bytes
    (tmp_path / "in").mkdir()
    for i, name in enumerate(names):
        Image.fromarray(image if i else 255 - image).save(tmp_path / "in" / name)
    table = rows(run(generator, tmp_path / "in", tmp_path / "out", beside=True))
    assert sorted(row["name"] for row in table) == names
    shown = [np.array(Image.open(picture_path(tmp_path / "out", name))) for name in names]
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 2 and (shown[0] != shown[1]).any()
    usual = "x" * 230 + ".png"
    assert picture_path(tmp_path, usual) == tmp_path / "pictures" / f"{usual}.png"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is told to the other one of two processes, of which this is the first."""
    found: list[str] = []

    def gather(answers: list[tuple[Exception | None, str]]) -> list[tuple[Exception | None, str]]:
        found.extend(str(error) for error, _ in answers if error is not None)
        return answers

    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True, device=torch.device("cpu"))
    monkeypatch.setattr(launch, "gather_object", gather)
    monkeypatch.setattr(launch, "join_processes", lambda: state)
    return found


def test_a_failure_on_one_node_reaches_the_others(tiny_run: tuple[Path, Path], tmp_path: Path, told: list[str]) -> None:
    """A model, folder or image that one process cannot open, or a prior that it lacks; the others would wait for it."""
    run, images, unfinished = str(tiny_run[1]), str(tmp_path / "none"), tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns("codes", "samples", "stage4"))
    flags = ("--images", images, "--output", str(tmp_path / "out"))
    for pipeline, arguments, says in (
        ("reconstruct", ("--run_dir", str(tmp_path), *flags), "stage1.py"),
        ("reconstruct", ("--run_dir", run, *flags), "no such folder"),
        ("sample", ("--run_dir", str(tmp_path)), "stage1.py"),
        ("sample", ("--run_dir", run, "--complete", images), "/none"),
        ("sample", ("--run_dir", str(unfinished)), "stage4.py"),
    ):
        told.clear()
        assert says in refusal(pipeline, *arguments)
        assert len(told) == 1 and says in told[0]


def test_an_image_without_a_class_is_refused_if_there_is_no_unconditional_model(
    tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "images", 2)
    conditional = Generator.from_run(tiny_run[1])
    for prior in conditional.priors.values():
        prior.config = replace(prior.config, label_dropout=0.0)
    with pytest.raises(UserError, match=r"broken.png: in no folder named as a class.*star"):
        run(conditional, tmp_path / "images", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_invalid_folders_are_refused(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    """A missing folder, one without images, an output with other files or inside the images, and an empty run."""
    arguments = ("reconstruct", "--run_dir", str(tiny_run[1]), "--images")
    assert "no such folder" in refusal(*arguments, str(tmp_path / "none"))
    (tmp_path / "in").mkdir()
    assert "contains no images" in refusal(*arguments, str(tmp_path / "in"))
    write_images(tmp_path / "in", 1)
    assert "inside the folder" in refusal(*arguments, str(tmp_path / "in"), "--output", str(tmp_path / "in" / "out"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "picture.png").touch()
    assert "not reconstructions" in refusal(*arguments, str(tmp_path / "in"), "--output", str(tmp_path / "own"))
    assert "stage1.py" in refusal("reconstruct", "--run_dir", str(tmp_path), "--images", str(tmp_path / "in"))


def test_the_reconstructions_of_another_folder_are_kept(generator: Generator, tmp_path: Path) -> None:
    """Another folder of images for the same output is refused, as is an output that contains the images."""
    write_images(tmp_path / "one" / "val", 3)
    write_images(tmp_path / "two" / "val", 2)
    table = run(generator, tmp_path / "one" / "val", tmp_path / "out")
    before = table.read_bytes()
    with pytest.raises(UserError, match=r"has the reconstructions of .*/one/val"):
        run(generator, tmp_path / "two" / "val", tmp_path / "out")
    assert table.read_bytes() == before
    with pytest.raises(UserError, match="inside the folder of the output"):
        run(generator, tmp_path / "out" / "pictures", tmp_path / "out")


def test_a_file_that_has_become_readable_is_read(generator: Generator, tmp_path: Path) -> None:
    """After a failure, an unreadable file is tried with the next start, even if size and time are unchanged."""
    write_images(tmp_path / "in", 1)
    image = next((tmp_path / "in").rglob("00.png"))
    good, stamp = image.read_bytes(), image.stat().st_mtime_ns
    image.write_bytes(bytes(len(good)))
    os.utime(image, ns=(stamp, stamp))
    with pytest.raises(UserError, match=r"none of 2 files can be read: see the reasons"):
        run(generator, tmp_path / "in", tmp_path / "out")
    image.write_bytes(good)
    os.utime(image, ns=(stamp, stamp))
    assert [row["name"] for row in rows(run(generator, tmp_path / "in", tmp_path / "out"))] == ["other/deep/00.png"]
