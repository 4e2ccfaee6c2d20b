"""pipelines/compare.py on a few drawn shapes, and the images that it compares models on."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT, refusal, succeed
from tests.family.small import CONFIG
from vqvae2.config import EvaluationConfig, ImagesConfig, TrainConfig, as_dict
from vqvae2.errors import UserError
from vqvae2.family.checks import check_family
from vqvae2.family.comparison import compare
from vqvae2.family.config import FamilyConfig
from vqvae2.family.data import binarised, open_in_memory
from vqvae2.family.members import MEMBERS
from vqvae2.training.metrics_log import read_metrics

TRAIN = TrainConfig(
    batch_size=4, total_steps=4, warmup_steps=1, mixed_precision="no", save_every=2, validate_every=2, log_every=1
)


def config(run_dir: Path, models: str, **fields: object) -> FamilyConfig:
    return FamilyConfig(
        str(run_dir),
        ImagesConfig(size=8, channels=1, workers=0, max_images=24),
        models,
        CONFIG,
        TRAIN,
        EvaluationConfig(num_samples=10, classifier_size=32, classifier_steps=1, batch_size=8),
        test_images=10,
        **fields,
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("compared") / "run"
    compare(config(run, "autoencoder,cvae"))
    compare(config(run, "vqvae"))
    return run


def test_the_table_has_every_figure_that_a_model_defines(compared: Path):
    models = json.loads((compared / "comparison.json").read_text())["models"]
    assert list(models) == ["autoencoder", "cvae", "vqvae"]  # also those of the earlier call
    assert all(found["fid"] > 0 and found["seconds"] > 0 and found["parameters"] > 0 for found in models.values())
    undefined = {name: {key for key, value in found.items() if value is None} for name, found in models.items()}
    conditional = {"classification_accuracy", "samples_recognised"}
    likelihood = {"rate", "distortion", "bound", "bits_per_dimension", "exchange_loss"}
    assert undefined == {
        "autoencoder": likelihood | conditional | {"active_units", "units", "codebook_usage"},
        "cvae": {"codebook_usage"},
        "vqvae": conditional | {"active_units", "units"},
    }
    vqvae = models["vqvae"]
    assert vqvae["bound"] == pytest.approx(vqvae["rate"] + vqvae["distortion"], rel=1e-5)
    assert vqvae["bits_per_dimension"] == pytest.approx(vqvae["bound"] / math.log(2) / 64, rel=1e-6)
    assert 0 <= models["cvae"]["active_units"] <= models["cvae"]["units"] == 4


def test_the_page_has_a_row_and_pictures_for_each_model(compared: Path):
    page = (compared / "comparison.html").read_text()
    for name in ("autoencoder", "cvae", "vqvae"):
        assert f'<tr><th scope="row">{name}</th>' in page
    assert page.count("data:image/png;base64") == 9 and page.count("data:image/svg+xml") == 1
    assert "http" not in page.replace("http://www.w3.org", "")  # loads nothing


def test_a_second_call_trains_and_computes_nothing(compared: Path, capsys: pytest.CaptureFixture):
    def times() -> dict[Path, int]:
        return {x: x.stat().st_mtime_ns for part in ("models", "evaluation") for x in (compared / part).rglob("*.json")
                if x.name != "made_of.json"}  # fmt: skip

    before = times()
    compare(config(compared, "autoencoder,cvae,vqvae"))
    assert times() == before and capsys.readouterr().out.count("nothing to do") == 3


def test_unknown_models_and_values_are_refused_before_anything_is_written(tmp_path: Path):
    path = str(ROOT / "configs" / "family_shapes.yaml")
    run = tmp_path / "run"
    message = refusal("compare", "--config", path, "--run_dir", str(run), "--models", "vae,vqvea")
    assert "'vqvea'" in message and ", ".join(MEMBERS) in message and len(message.splitlines()) == 1
    assert "members.hiden_channels" in refusal("compare", "--config", path, "--members.hiden_channels", "8")
    colour = FamilyConfig(str(run), ImagesConfig(size=8), "vae", CONFIG, TRAIN, binarise=True)
    with pytest.raises(UserError, match=r"binarise.*channels"):
        check_family(colour)
    with pytest.raises(UserError, match=r"images.size"):
        check_family(FamilyConfig(str(run), ImagesConfig(size=30, channels=3), "vae", CONFIG, TRAIN))
    assert not run.exists()


def test_two_processes_update_the_weights_as_one_does(tmp_path: Path):
    """The VAE draws its noise by batch index, so the split over processes does not matter."""
    both = config(tmp_path / "1", "vae"), config(tmp_path / "2", "vae")
    compare(both[0])
    path = tmp_path / "vae.yaml"
    path.write_text(yaml.safe_dump(as_dict(both[1])))
    succeed("compare", "--config", str(path), processes=2)
    losses, figures = [], []
    for run in (tmp_path / "1", tmp_path / "2"):
        lines = read_metrics(run / "models" / "vae" / "metrics.jsonl")
        losses.append([x["loss"] for x in lines if x["split"] == "train"])
        figures.append(json.loads((run / "comparison.json").read_text())["models"]["vae"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4
    for key in ("rate", "bound", "reconstruction_mse", "fid"):
        assert figures[0][key] == pytest.approx(figures[1][key], rel=1e-2)


def test_images_are_binarised_once_with_their_brightness_as_probability(tmp_path: Path):
    first, again = (open_in_memory(config(tmp_path, "vae", binarise=True)).train.load(0) for _ in range(2))
    assert torch.equal(first, again) and set(first.unique().tolist()) <= {0, 255}
    grey = torch.full((1000, 1, 10, 10), 64, dtype=torch.uint8)
    share = (binarised(grey, torch.Generator().manual_seed(0)) == 255).double().mean().item()
    assert share == pytest.approx(64 / 255, abs=0.006)
