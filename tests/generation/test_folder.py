"""Reconstruction of a folder of images: the table, the pictures, resuming and invalid input."""

import csv
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from tests.conftest import refusal
from vqvae2 import Generator
from vqvae2.errors import UserError
from vqvae2.generation import folder
from vqvae2.generation.folder import reconstruct_folder
from vqvae2.images.distances import mse
from vqvae2.images.similarity import ssim


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
    original = generator.read_image(tmp_path / "in" / table[0]["name"])[0].permute(1, 2, 0)
    assert torch.equal(torch.from_numpy(np.array(shown))[2:18, 2:34], original)


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
