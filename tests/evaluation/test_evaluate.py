"""Tests of pipelines/evaluate.py on the tiny run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from tests.conftest import launch, refusal, succeed, write_config
from vqvae2 import Generator
from vqvae2.config import ImagesConfig
from vqvae2.images.sources import open_images


@pytest.fixture(scope="module")
def found(evaluated_run: Path) -> dict:
    return json.loads((evaluated_run / "evaluation.json").read_text())


def test_every_section_is_there(found: dict):
    assert {"mse", "mse_0_1", "psnr", "ssim", "coarsest_alone"} <= set(found["reconstruction"])
    assert set(found["codebook"]) == {"top", "bottom"}
    likelihood = found["likelihood"]
    assert likelihood["bits_per_dimension"] == pytest.approx(
        likelihood["code_bits_per_dimension"] + likelihood["pixel_bits_per_dimension"]
    )
    nats = 2 * 4 * likelihood["top"]["nats_per_code"] + 4 * 8 * likelihood["bottom"]["nats_per_code"]
    bits = nats / 0.6931471805599453
    assert likelihood["code_bits_per_dimension"] == pytest.approx(bits / (3 * 16 * 32), rel=1e-6)
    assert likelihood["compression"]["coded_codes"] == pytest.approx(24 * 16 * 32 / bits, rel=1e-6)
    assert {"fid", "kid", "score", "precision", "recall", "reconstruction_fid"} <= set(
        found["fidelity"]["classifier_features"]
    )
    assert found["fidelity"]["samples"]["images"] == found["fidelity"]["real"]["images"] == 13
    for name in ("real", "reconstructions", "samples"):
        assert 0 <= found["classification_accuracy"][name] <= 1


def test_reconstruction_is_that_of_the_generator(found: dict, evaluated_run: Path):
    generator = Generator.from_run(evaluated_run)
    images = open_images(ImagesConfig(size=[16, 32], max_images=48), seed=0).validation
    originals = torch.stack([images.load(i) for i in range(len(images))])
    decoded = generator.decode(generator.encode(originals))
    ratios = [
        peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255) for a, b in zip(originals, decoded, strict=True)
    ]
    assert found["reconstruction"]["psnr"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-3)


def test_a_second_call_computes_nothing_and_other_samples_leave_the_rest(evaluated_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(evaluated_run, run)
    evaluation = run / "evaluation"

    def times() -> dict[str, int]:
        return {x.relative_to(evaluation).as_posix(): x.stat().st_mtime_ns for x in evaluation.rglob("*.json*")}

    before = times()
    said = succeed("evaluate", "--run_dir", str(run))
    assert "starting over" not in said and {k: v for k, v in times().items() if "made_of" not in k} == {
        k: v for k, v in before.items() if "made_of" not in k
    }

    def samples() -> dict[str, int]:
        return {x.name: x.stat().st_mtime_ns for x in (evaluation / "samples").glob("seed*.png")}

    drawn = samples()
    said = succeed("evaluate", "--run_dir", str(run), "--evaluation.num_samples", "7")
    renewed = {line.split(": inputs")[0].rsplit("/", 1)[-1] for line in said.splitlines() if "starting over" in line}
    assert renewed == {"classifier_samples", "comparison"}
    assert json.loads((run / "evaluation.json").read_text())["fidelity"]["samples"]["images"] == 7
    assert samples() == drawn and len(drawn) == 13  # an image does not depend on the number of samples

    record = evaluation / "samples" / "made_of.json"  # as in the earlier format, which included the number of samples
    record.write_text(json.dumps({**json.loads(record.read_text()), "num_samples": 13}))
    succeed("evaluate", "--run_dir", str(run), "--evaluation.num_samples", "9")
    assert samples() == drawn


def test_two_processes_find_what_one_finds(evaluated_run: Path, found: dict, tmp_path: Path):
    """Two processes compute the same metrics as one process.

    The number of samples is odd, so that one share is padded. The classifiers of the one-process run are reused.
    """
    run = tmp_path / "run"
    shutil.copytree(evaluated_run, run)
    for part in ("reconstruction", "likelihood", "comparison"):
        (run / "evaluation" / part / "figures.json").unlink()
    shutil.rmtree(run / "evaluation" / "samples")
    launch("evaluate", "--run_dir", str(run), processes=2)
    again = json.loads((run / "evaluation.json").read_text())
    assert leaves(again) == pytest.approx(leaves(found), rel=1e-3, abs=1e-4)


def leaves(found: dict | list, path: str = "") -> dict[str, float]:
    """All numbers in nested dictionaries and lists, keyed by their path."""
    items = found.items() if isinstance(found, dict) else enumerate(found)
    numbers = {}
    for key, value in items:
        if isinstance(value, dict | list):
            numbers |= leaves(value, f"{path}/{key}")
        elif isinstance(value, int | float):
            numbers[f"{path}/{key}"] = value
    return numbers


def test_a_fraction_of_the_samples_is_kept(evaluated_run: Path, tiny_run):
    flags = ("--run_dir", str(evaluated_run), "--num_images", "12", "--batch_size", "12")
    succeed("sample", *flags, "--keep_fraction", "0.25")
    (folder,) = (evaluated_run / "samples").glob("grid_*_best0.25/")
    kept = sorted(folder.glob("*.png"))
    labels = [path.stem.rsplit("_", 1)[1] for path in kept]
    assert 3 <= len(kept) < 12 and set(labels) <= set(Generator.from_run(evaluated_run).classes)
    assert len(set(labels)) >= 3  # at least one sample of each class is kept
    with Image.open(folder.with_name(f"{folder.name}.png")) as grid:
        assert grid.width > 32
    assert "keep_fraction" in refusal("sample", *flags, "--keep_fraction", "1.5")
    message = refusal("sample", "--run_dir", str(tiny_run[1]), "--num_images", "2", "--keep_fraction", "0.5")
    assert "evaluate.py" in message


def test_a_run_without_classes(tmp_path: Path):
    """Without classes, metrics that need a classifier are null, and --keep_fraction is rejected."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(12):
        Image.new("RGB", (32, 16), (20 * i, 255 - 20 * i, 100)).save(pictures / f"{i}.png")
    config = write_config(tmp_path, tmp_path / "run")
    flags = ("--config", str(config), "--images.source", "folder", "--images.root", str(pictures),
             "--images.validation_fraction", "0.5", "--images.max_images", "6")  # fmt: skip
    for stage in (1, 2, 3, 4):
        succeed(f"stage{stage}", *flags)
    assert "seed" in refusal("evaluate", *flags, "--seed", "1")
    assert "guidance" in refusal("evaluate", "--run_dir", str(tmp_path / "run"), "--evaluation.guidance", "2")
    assert not (tmp_path / "run" / "evaluation").exists()  # options are rejected before any computation
    succeed("evaluate", "--run_dir", str(tmp_path / "run"), "--evaluation.num_samples", "6")
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["classification_accuracy"] is None and found["fidelity"]["classifier_features"] is None
    assert found["rejection"] == [] and found["reconstruction"]["images"] == 6
    assert "without classes" in refusal("sample", "--run_dir", str(tmp_path / "run"), "--keep_fraction", "0.5")


def test_an_unfinished_run_is_refused(tmp_path: Path):
    assert "config.yaml" in refusal("evaluate", "--run_dir", str(tmp_path / "nowhere"))
