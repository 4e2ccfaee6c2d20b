"""pipelines/compare.py on a few drawn shapes, and the images that it compares models on."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, made_once, refusal
from tests.family.small import CONFIG, build, stripes
from vqvae2.config import EvaluationConfig, ImagesConfig, TrainConfig
from vqvae2.errors import UserError
from vqvae2.family import comparison
from vqvae2.family.checks import check_family
from vqvae2.family.comparison import compare
from vqvae2.family.config import FamilyConfig
from vqvae2.family.data import binarised, open_in_memory
from vqvae2.family.members import MEMBERS
from vqvae2.family.vqvae import VQVAE
from vqvae2.images.grids import save_image
from vqvae2.images.loading import ImageBatch
from vqvae2.run.command_line import parse_sections

TRAIN = TrainConfig(
    batch_size=4, total_steps=4, warmup_steps=1, mixed_precision="no", save_every=2, validate_every=4, log_every=1
)


def config(run_dir: Path, images: ImagesConfig, models: str, **fields: object) -> FamilyConfig:
    whole = FamilyConfig(
        str(run_dir),
        images,
        models,
        CONFIG,
        TRAIN,
        EvaluationConfig(num_samples=10, classifier_size=32, classifier_steps=1, batch_size=8),
        test_images=10,
    )
    return replace(whole, **fields)


def flat_images(folder: Path) -> ImagesConfig:
    """Twenty-four images without classes, a quarter of them held out; written to the folder unless it exists."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for i in range(24):
            save_image(torch.full((1, 8, 8), 10 * i, dtype=torch.uint8), folder / f"{i}.png")
    return ImagesConfig(source="folder", root=str(folder), size=8, channels=1, workers=0, validation_fraction=0.25)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImagesConfig:
    """Forty images of noise in two classes, sixteen of them held out."""

    def make(folder: Path) -> None:
        noise = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        for name, pictures in (("dark", noise[:20] // 2), ("light", noise[20:] // 2 + 128)):
            (folder / "images" / name).mkdir(parents=True)
            for i, picture in enumerate(pictures):
                save_image(picture, folder / "images" / name / f"{i}.png")

    root = made_once(tmp_path_factory, "two_classes", make) / "images"
    return ImagesConfig(source="folder", root=str(root), size=8, channels=1, workers=0, validation_fraction=0.4)


@pytest.fixture(scope="module")
def compared(images: ImagesConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three models, for tests that only read it."""

    def make(folder: Path) -> None:
        compare(config(folder / "run", images, "autoencoder,cvae,vqvae"))

    return made_once(tmp_path_factory, "compared", make) / "run"


@pytest.fixture
def copied(compared: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(compared, tmp_path / "run")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, which takes longer than the rest, in tests of the figures."""
    monkeypatch.setattr(comparison, "write_page", lambda *_: None)


def test_the_table_has_every_figure_that_a_model_defines(compared: Path):
    models = json.loads((compared / "comparison.json").read_text())["models"]
    assert list(models) == ["autoencoder", "cvae", "vqvae"]
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
    assert page.count("data:image/png;base64") == 9 and page.count("data:image/svg+xml") == 2
    assert "http" not in page.replace("http://www.w3.org", "")  # loads nothing


@pytest.mark.usefixtures("no_page")
def test_a_second_call_trains_and_computes_nothing(images: ImagesConfig, copied: Path, capsys: pytest.CaptureFixture):
    def times() -> dict[Path, int]:
        return {x: x.stat().st_mtime_ns for part in ("models", "evaluation") for x in (copied / part).rglob("*.json")
                if x.name != "made_of.json"}  # fmt: skip

    before = times()
    compare(config(copied, images, "autoencoder,cvae,vqvae"))
    assert times() == before and capsys.readouterr().out.count("nothing to do") == 3


def test_an_interrupted_model_ends_with_the_same_figures(
    images: ImagesConfig, compared: Path, copied: Path, no_page: None, monkeypatch: pytest.MonkeyPatch
):
    """A comparison that is stopped in step 3 goes on from the checkpoint of step 2."""

    def stopped(self: VQVAE, step: int, *others: object) -> None:
        if step == 2:
            raise KeyboardInterrupt
        end_step(self, step, *others)

    for part in ("models", "evaluation"):
        shutil.rmtree(copied / part / "vqvae")
    end_step = VQVAE.end_step
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(VQVAE, "end_step", stopped)
        compare(config(copied, images, "vqvae"))
    assert [x.name for x in (copied / "models" / "vqvae" / "checkpoints").iterdir()] == ["step_00000002"]
    compare(config(copied, images, "vqvae"))
    whole, resumed = (json.loads((x / "comparison.json").read_text())["models"] for x in (compared, copied))
    assert {**resumed["vqvae"], "seconds": 0} == {**whole["vqvae"], "seconds": 0}


def test_models_of_another_configuration_are_not_mixed(images: ImagesConfig, compared: Path):
    """A call for some models leaves the figures of the others as they are, or is refused."""
    before = (compared / "comparison.json").read_bytes()
    others = (
        {"members": replace(CONFIG, units=48)},
        {"members": replace(CONFIG, latent_dim=3)},
        {"seed": 1},
        {"binarise": True},
    )
    for fields in others:
        with pytest.raises(UserError, match=r"started with another configuration.*use another run_dir"):
            compare(config(compared, images, "ppca", **fields))
        assert (compared / "comparison.json").read_bytes() == before and not (compared / "models" / "ppca").exists()
        assert (compared / "evaluation" / "vqvae" / "figures.json").exists()


@pytest.mark.usefixtures("no_page")
def test_the_closed_form_and_the_bound_can_be_continued(
    images: ImagesConfig, copied: Path, capsys: pytest.CaptureFixture
):
    """More steps leave a model in closed form as it is; the samples of the bound change its evaluation alone."""
    compare(config(copied, images, "ppca"))
    first = json.loads((copied / "comparison.json").read_text())["models"]
    capsys.readouterr()
    more = {"members": replace(CONFIG, likelihood_samples=40), "train": replace(TRAIN, total_steps=6)}
    compare(config(copied, images, "ppca", **more))
    assert "fitted in closed form" in capsys.readouterr().out
    second = json.loads((copied / "comparison.json").read_text())["models"]
    assert list(second) == ["autoencoder", "ppca", "cvae", "vqvae"]  # also those of earlier calls
    assert second["cvae"]["bound"] < first["cvae"]["bound"] and second["cvae"]["fid"] == first["cvae"]["fid"]
    assert second["ppca"] == first["ppca"] and first["ppca"]["parameters"] > 64
    assert second["cvae"]["steps"] == 4


def test_a_model_that_the_images_do_not_fit_is_refused_before_any_is_trained(images: ImagesConfig, tmp_path: Path):
    flat = flat_images(tmp_path / "flat")
    with pytest.raises(UserError, match="cvae needs images with classes"):
        compare(config(tmp_path / "run", flat, "vae,cvae"))
    with pytest.raises(UserError, match=r"members\.delta: 500"):
        compare(config(tmp_path / "run", images, "vae,delta_vae", members=replace(CONFIG, delta=500.0)))
    assert not (tmp_path / "run" / "models").exists()
    unfit = {
        "members.sequence_length: 1": {"members": replace(CONFIG, sequence_length=1)},
        "evaluation.guidance: 2.0": {"evaluation": EvaluationConfig(guidance=2.0)},
        "train.start_from": {"train": replace(TRAIN, start_from="mnist")},
        "images.size": {"images": replace(flat, size=[8, 8, 8])},
    }
    for message, fields in unfit.items():
        with pytest.raises(UserError, match=message):
            check_family(replace(config(tmp_path / "run", images, "vae"), **fields))


def test_unknown_models_and_values_are_refused_before_anything_is_written(images: ImagesConfig, tmp_path: Path):
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
    with pytest.raises(UserError, match=r"members.group_rows: 3 .* divisor of 8"):
        check_family(replace(config(run, images, "oi_vae"), members=replace(CONFIG, group_rows=3)))
    assert not run.exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("family_*.yaml")), ids=lambda path: path.name)
def test_every_shipped_comparison_is_good(path: Path):
    """Each file can be read and passes all checks."""
    given = parse_sections(FamilyConfig, "", path, [])
    check_family(given)
    assert set(given.names) <= set(MEMBERS)


def test_noise_does_not_depend_on_the_split_over_processes():
    """The noise of an image is that of its place in the global batch."""
    member, batch = build("vae"), stripes()
    parts = [ImageBatch(*(x[half] for x in batch)) for half in (slice(0, 8), slice(8, 16))]
    whole = member.noise("posterior", batch, 3, 4)
    assert torch.equal(torch.cat([member.noise("posterior", part, 3, 4) for part in parts]), whole)
    assert not torch.equal(member.noise("posterior", batch, 4, 4), whole)


def test_images_are_binarised_once_with_their_brightness_as_probability(images: ImagesConfig, tmp_path: Path):
    first, again = (open_in_memory(config(tmp_path, images, "vae", binarise=True)).train.load(0) for _ in range(2))
    assert torch.equal(first, again) and set(first.unique().tolist()) <= {0, 255}
    grey = torch.full((1000, 1, 10, 10), 64, dtype=torch.uint8)
    share = (binarised(grey, torch.Generator().manual_seed(0)) == 255).double().mean().item()
    assert share == pytest.approx(64 / 255, abs=0.006)
