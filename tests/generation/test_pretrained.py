"""Saving trained models to a folder or a repository, and loading them from a folder, the package or a repository."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import ROOT, command_of, refusal, succeed
from tests.generation.hub_server import COMMIT, DENIED, GATED, REPOSITORY, hub_of
from vqvae2 import Generator, UserError
from vqvae2.generation import hub, pretrained
from vqvae2.generation.samples import read_sample
from vqvae2.run.command_line import parse_config

on_cpu = partial(Generator.from_pretrained, device="cpu", dtype="float32")


def samples(generator: Generator) -> torch.Tensor:
    return generator.sample(3, seed=1, batch_size=3)


@pytest.fixture(scope="module")
def generator(evaluated_run: Path) -> Generator:
    return Generator.from_run(evaluated_run, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def saved(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "shapes"
    generator.save_pretrained(folder, license="mit")
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_saved_model_samples_and_judges_as_its_run(generator: Generator, saved: Path) -> None:
    """A model loaded from a folder has the fingerprint, samples and likelihoods of the run, bit for bit."""
    loaded = on_cpu(saved)
    images = samples(generator)
    assert loaded.run_dir is None and loaded.fingerprint() == generator.fingerprint()
    assert torch.equal(samples(loaded), images)
    one, other = (x.log_likelihood(images).bits_per_dimension for x in (generator, loaded))
    assert one is not None and other is not None and torch.equal(one, other)


def test_bfloat16_halves_the_priors_and_nothing_else(generator: Generator, tmp_path: Path, evaluated_run: Path) -> None:
    """Priors in bfloat16 give the samples of the run in bfloat16; the autoencoder is the same file."""
    generator.save_pretrained(tmp_path / "a")
    generator.save_pretrained(tmp_path / "b", dtype="bfloat16")
    for file in ("prior_top.safetensors", "prior_bottom.safetensors"):
        exact, rounded = load_file(tmp_path / "a" / file), load_file(tmp_path / "b" / file)
        assert all(torch.equal(rounded[name], x.bfloat16()) for name, x in exact.items())
    name = "autoencoder.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rough = Generator.from_run(evaluated_run, device="cpu", dtype="bfloat16")
    loaded = Generator.from_pretrained(tmp_path / "b", device="cpu", dtype="bfloat16")
    assert torch.equal(samples(loaded), samples(rough))
    with pytest.raises(UserError, match="float16"):
        generator.save_pretrained(tmp_path / "c", dtype="float16")


def test_the_card_has_metadata_metrics_and_pictures(saved: Path, evaluated_run: Path) -> None:
    """README.md has the metadata of the Hub and the values of evaluation.json; training.yaml can be trained with."""
    card = ModelCard.load(saved / "README.md")
    assert (card.data.library_name, card.data.license) == ("vqvae2", "mit")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.tags == ["vq-vae-2", "vq-vae", "pixelcnn", "autoregressive"]
    evaluation = json.loads((evaluated_run / "evaluation.json").read_text())
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["psnr"] == pytest.approx(evaluation["reconstruction"]["psnr"], abs=1e-4)
    assert values["classification_accuracy_score"] == round(evaluation["classification_accuracy"]["samples"], 5)
    for name in ("samples.png", "reconstructions.png"):
        assert f"({name})" in card.content
        original = evaluated_run / "evaluation" / "comparison" / name
        assert (saved / name).read_bytes() == original.read_bytes()
    config, _ = parse_config(["--config", str(saved / "training.yaml")])
    assert config.run_dir == "runs/run" and config.stage1.total_steps == 4
    text = "".join(path.read_text() for path in saved.iterdir() if path.suffix in (".md", ".yaml", ".json"))
    assert str(evaluated_run.parent.parent) not in text


@pytest.mark.parametrize("stale", ["evaluation/comparison/made_of.json", "evaluation.json"])
def test_metrics_of_other_weights_are_left_out(evaluated_run: Path, tmp_path: Path, stale: str) -> None:
    """After a stage was trained again, the metrics and pictures of the evaluation before are not published.

    Nor are they after the new evaluation was interrupted before it wrote evaluation.json.
    """
    run = tmp_path / "run"
    shutil.copytree(evaluated_run, run, ignore=shutil.ignore_patterns("codes", "samples", "classifier_*"))
    record = run / stale
    record.write_text(json.dumps({**json.loads(record.read_text()), "weights": "00000000"}))
    Generator.from_run(run, device="cpu", dtype="float32").save_pretrained(tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.eval_results is None
    assert not (tmp_path / "out" / "samples.png").exists() and not (tmp_path / "out" / "evaluation.json").exists()


def test_a_loaded_model_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    """A second export has the same files, except for the name in the card."""
    on_cpu(saved).save_pretrained(tmp_path / "again")
    for path in saved.iterdir():
        again = (tmp_path / "again" / path.name).read_bytes()
        assert again.replace(b"again", b"shapes") == path.read_bytes(), path.name


def test_a_damaged_training_file_is_left_out(copy: Path, tmp_path: Path) -> None:
    """A training.yaml that is not text does not keep a loaded model from being saved."""
    (copy / "training.yaml").write_bytes(b"seed: \xff")
    on_cpu(copy).save_pretrained(tmp_path / "again")
    assert {path.name for path in copy.iterdir()} - {path.name for path in (tmp_path / "again").iterdir()} == {
        "training.yaml"
    }


def test_only_an_earlier_export_is_replaced(generator: Generator, copy: Path, tmp_path: Path) -> None:
    """An earlier export is replaced as a whole; a folder with other files is refused and left alone."""
    content = json.loads((copy / "config.json").read_text())
    generator.save_pretrained(copy)
    assert json.loads((copy / "config.json").read_text()) == {**content, "license": None}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        generator.save_pretrained(other)
    assert [x.name for x in other.iterdir()] == ["thesis.txt"]


def test_a_first_export_that_was_killed_is_replaced(generator: Generator, saved: Path, tmp_path: Path) -> None:
    """Weights without config.json are those of an unfinished export only beside the folder that it leaves."""
    folder = tmp_path / "killed"
    folder.mkdir()
    shutil.copy(saved / "prior_top.safetensors", folder)
    with pytest.raises(UserError, match="not empty"):
        generator.save_pretrained(folder)
    (folder / ".export.abc").mkdir()
    (folder / ".export.abc" / "config.json").touch()
    generator.save_pretrained(folder)
    assert {x.name for x in folder.iterdir()} == {x.name for x in saved.iterdir()}


def test_transparent_pixels_have_the_background_of_the_training_images(
    generator: Generator, copy: Path, tmp_path: Path
) -> None:
    """config.json has it; one of an earlier version lacks it and means white."""
    Image.new("RGBA", (32, 16)).save(tmp_path / "clear.png")
    assert (generator.read_image(tmp_path / "clear.png") == 255).all()
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**content, "background": [0, 0, 0]}))
    assert (on_cpu(copy).read_image(tmp_path / "clear.png") == 0).all()
    del content["background"]
    (copy / "config.json").write_text(json.dumps(content))
    assert on_cpu(copy).background == (255, 255, 255)


@pytest.mark.parametrize("file", ["autoencoder.safetensors", "prior_bottom.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "alter", "delete"])
def test_a_damaged_file_is_refused(copy: Path, file: str, harm: str) -> None:
    """A truncated, altered or missing weights file is named, with what to do."""
    content = (copy / file).read_bytes()
    if harm == "delete":
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content[:-9] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{file}.*complete copy"):
        on_cpu(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.update(library_name="transformers"), "not a model of vqvae2"),
        (lambda x: x.update(format_version=99), "format_version 99"),
        (lambda x: x.update(colour="red"), "colour: unknown field"),
        (lambda x: x["autoencoder"]["levels"][0].update(depth=2), r"levels\[0\] \(top\)\.depth: unknown field"),
        (lambda x: x["priors"]["top"].update(train={}), "priors.top.train: unknown field"),
        (lambda x: x["priors"]["bottom"].pop("layers"), "priors.bottom.layers: missing field"),
        (lambda x: x["priors"]["bottom"].update(layers="many"), "layers.*many"),
        (lambda x: x["autoencoder"]["levels"][1].update(name="../x"), "name: '../x' is not valid"),
        (lambda x: x["autoencoder"].update(hidden_channels=32), "do not fit the model that config.json describes"),
        (lambda x: x.update(class_frequencies=[1.0]), "class_frequencies"),
        (lambda x: x.update(sha256={}), "sha256"),
        (lambda x: x.update(sha256="{}"), "sha256.*use an object"),
        (lambda x: x.update(classes="[a, b]"), "classes.*use a list"),
        (lambda x: x.update(background=[0, 0, 300]), "background"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(copy: Path, change, says: str) -> None:
    """A foreign config.json, and an unknown, missing or wrong field, are refused in one line that names it."""
    content = json.loads((copy / "config.json").read_text())
    change(content)
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says) as refused:
        on_cpu(copy)
    assert "\n" not in str(refused.value) and "config.json" in str(refused.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_broken_description_is_named(copy: Path, content: bytes) -> None:
    """A config.json that is not JSON, or not an object, is named."""
    (copy / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        on_cpu(copy)


def test_a_bundled_model_is_found_by_its_name(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated_run: Path
) -> None:
    """A name of the package's folder loads that model, also beside a folder of this name; unknown names list it."""
    shutil.copytree(saved, tmp_path / "package" / "digits")
    (tmp_path / "digits").mkdir()
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    assert on_cpu("digits").classes[0] == "circle"
    for name, says in (
        ("./digits", "give a folder with a saved model"),
        ("letters", r"bundled model \(digits\)"),
        (str(evaluated_run), "use --run_dir"),
    ):
        with pytest.raises(UserError, match=says):
            on_cpu(name)
    with pytest.raises(UserError, match="revision"):
        on_cpu("digits", revision="main")


def test_a_repository_is_downloaded_once(
    saved: Path, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only config.json and the weights are downloaded; afterwards the model loads from the cache without the Hub."""
    with hub_of(saved) as (address, downloaded):
        monkeypatch.setattr(hub, "snapshot_download", partial(huggingface_hub.snapshot_download, endpoint=address))
        with pytest.raises(UserError, match="not in the cache"):
            on_cpu(REPOSITORY, cache_dir=tmp_path, local_files_only=True)
        assert downloaded == []
        assert torch.equal(samples(on_cpu(REPOSITORY, cache_dir=tmp_path)), samples(generator))
        assert sorted(downloaded) == sorted(
            ["config.json", "autoencoder.safetensors", "prior_bottom.safetensors", "prior_top.safetensors"]
        )
        on_cpu(REPOSITORY, cache_dir=tmp_path, revision="main")
        assert len(downloaded) == 4
        for name, revision, says in (
            (REPOSITORY, "v9", f"{REPOSITORY}: revision 'v9' not found"),
            ("someone/nothing", None, "someone/nothing: repository not found"),
            (GATED, None, f"{GATED}: access is restricted"),
            (DENIED, None, f"{DENIED}: access denied"),
        ):
            with pytest.raises(UserError, match=says) as refused:
                on_cpu(name, revision=revision, cache_dir=tmp_path)
            assert "\n" not in str(refused.value)
    for local_files_only in (True, False):  # the server has ended
        assert on_cpu(REPOSITORY, cache_dir=tmp_path, local_files_only=local_files_only).classes == generator.classes
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        on_cpu(REPOSITORY, cache_dir=tmp_path / "empty")
    on_cpu(REPOSITORY, cache_dir=tmp_path).save_pretrained(tmp_path / "again")
    assert set(os.listdir(tmp_path / "again")) == {"README.md", *downloaded}


def test_after_an_interrupted_download_the_network_is_named(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting the download would not help. A file that the repository lacks is named as such."""
    cache = tmp_path / "cache"
    with hub_of(copy) as (address, _):
        monkeypatch.setattr(hub, "snapshot_download", partial(huggingface_hub.snapshot_download, endpoint=address))
        on_cpu(REPOSITORY, cache_dir=cache)
        (copy / "prior_top.safetensors").unlink()
        with pytest.raises(UserError, match=r"prior_top\.safetensors.*the repository lacks this file"):
            on_cpu(REPOSITORY, cache_dir=tmp_path / "other")
    (cache / "models--someone--shapes" / "snapshots" / COMMIT / "prior_top.safetensors").unlink()
    with pytest.raises(UserError, match=r"not in the cache.*check the network") as refused:
        on_cpu(REPOSITORY, cache_dir=cache, local_files_only=True)
    assert "\n" not in str(refused.value) and "delete" not in str(refused.value)


def test_a_damaged_or_foreign_repository_is_refused(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged download names the folder to delete; of a repository of another library, only config.json is loaded."""
    (copy / "prior_top.safetensors").write_bytes(b"short")
    with hub_of(copy) as (address, downloaded):
        monkeypatch.setattr(hub, "snapshot_download", partial(huggingface_hub.snapshot_download, endpoint=address))
        with pytest.raises(UserError, match=r"prior_top.*delete .*models--someone--shapes to download it again"):
            on_cpu(REPOSITORY, cache_dir=tmp_path / "cache")
        downloaded.clear()
        (copy / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(UserError, match="not a model of vqvae2"):
            on_cpu(REPOSITORY, cache_dir=tmp_path / "other")
        assert downloaded == ["config.json"]
        (copy / "config.json").unlink()
        with pytest.raises(UserError, match=r"has no config\.json"):
            on_cpu(REPOSITORY, cache_dir=tmp_path / "third")


class Api:
    """Records the calls of an upload instead of making them."""

    is_private = True
    files: tuple[str, ...] = (".gitattributes",)  # of the repository

    def __init__(self, token: str | None):
        self.calls: list = [token]
        Api.last = self

    def create_repo(self, repository: str, **options: object) -> str:
        Api.created = (repository, options)
        return f"https://hub/{repository}"

    def model_info(self, repository: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.is_private)

    def list_repo_files(self, repository: str) -> list[str]:
        return list(self.files)

    def upload_folder(self, repo_id: str, folder_path: Path, delete_patterns: list[str], **options: object) -> None:
        card = ModelCard.load(folder_path / "README.md").content
        self.calls.append((repo_id, sorted(os.listdir(folder_path)), card, delete_patterns))


def test_an_upload_creates_the_repository_and_sends_an_export(
    generator: Generator, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """push_to_hub creates the repository and uploads the files of save_pretrained, with its name in the card."""
    monkeypatch.setattr(hub, "HfApi", Api)
    address = generator.push_to_hub("someone/new", private=True, token="secret", license="mit")
    assert address == "https://hub/someone/new"
    token, (name, files, card, deleted) = Api.last.calls
    assert (token, name) == ("secret", "someone/new") and files == sorted(os.listdir(saved)) and deleted == []
    assert Api.created == ("someone/new", {"private": True, "exist_ok": True})
    assert "from_pretrained('someone/new')" in card and "name: new" in card


def test_the_script_uploads_to_a_repository(evaluated_run: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """publish.py --repository makes the calls of push_to_hub and prints the address."""
    monkeypatch.setattr(hub, "HfApi", Api)
    flags = ("--repository", "someone/new", "--private", "true", "--license", "mit")
    assert "model: https://hub/someone/new\n" in succeed("publish", "--run_dir", str(evaluated_run), *flags)
    _, (name, files, card, _) = Api.last.calls
    assert name == "someone/new" and files == sorted(os.listdir(saved)) and "license: mit" in card
    assert Api.created == ("someone/new", {"private": True, "exist_ok": True})


def test_an_upload_replaces_an_earlier_export_alone(
    generator: Generator, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only names of the earlier export are deleted; a repository of other files is refused, and nothing is sent."""
    exported = set(os.listdir(copy))
    others = (".gitattributes", "own.safetensors", "older/prior_top.safetensors")
    monkeypatch.setattr(hub, "HfApi", Api)
    with hub_of(copy) as (address, _):

        def push_to(*files: str, cache: str = "cache") -> None:
            download = partial(huggingface_hub.snapshot_download, endpoint=address, cache_dir=tmp_path / cache)
            monkeypatch.setattr(hub, "snapshot_download", download)
            monkeypatch.setattr(Api, "files", files)
            generator.push_to_hub(REPOSITORY)

        push_to(*others, *exported)
        assert set(Api.last.calls[1][-1]) == exported - {"config.json", "README.md"}
        push_to(".gitattributes", "README.md")
        assert Api.last.calls[1][-1] == []
        (copy / "config.json").write_text('{"model_type": "gpt2"}')
        for files in (others, (*others, "config.json")):
            with pytest.raises(UserError, match=f"^{REPOSITORY}: not empty, and not an earlier export: use a new"):
                push_to(*files, cache="new")
            assert Api.last.calls == [None]  # the token


def test_a_refused_upload_sends_nothing(
    generator: Generator, tiny_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public repository is not filled with a private model, and an unfinished run creates no repository."""
    created: list = []
    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(Api, "is_private", False)
    monkeypatch.setattr(Api, "upload_folder", lambda *_, **__: created.append("upload"))
    with pytest.raises(UserError, match="exists and is public"):
        generator.push_to_hub("someone/new", private=True)
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: created.append("repository"))
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run, ignore=shutil.ignore_patterns("stage4"))
    with pytest.raises(UserError, match=r"stage4\.py"):
        Generator.from_run(run, device="cpu").push_to_hub("someone/new")
    assert created == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device", "/cache/x"), "/cache/x cannot be written.*free disk space"),
        (PermissionError(13, "Permission denied", "/cache"), "/cache cannot be written.*HF_HOME"),
        (ValueError("Invalid metadata in README.md.\n- license must be one of"), "README.md. - license must be one of"),
        (ConnectionError("refused"), "connection to the Hub failed.*check the network"),
    ],
)
def test_errors_of_the_disk_and_of_the_card_are_not_called_those_of_the_network(error: Exception, says: str) -> None:
    with pytest.raises(UserError, match=says), hub._told("someone/shapes", None):
        raise error


@pytest.mark.parametrize("name", ["shapes", "a/b/c", "~no-such-user/shapes", "x" * 300])
def test_a_name_that_is_no_repository_is_refused(generator: Generator, name: str) -> None:
    """Neither loads a model nor is anything sent."""
    with pytest.raises(UserError, match=r"not a valid name of a repository: use USER/NAME"):
        generator.push_to_hub(name)
    with pytest.raises(UserError, match="not a folder"):
        on_cpu(name)


def test_an_upload_without_a_token_is_explained(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A denied or unreachable Hub gives one line."""
    for error, says in (
        (huggingface_hub.errors.LocalTokenNotFoundError("no token"), "access denied.*hf auth login"),
        (huggingface_hub.errors.HFValidationError("bad"), "not a valid name"),
        (RuntimeError("reset by peer\nand more"), "reset by peer"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(hub.HfApi, "create_repo", fail)
        with pytest.raises(UserError, match=says) as refused:
            generator.push_to_hub("someone/new")
        assert "\n" not in str(refused.value)


def test_the_scripts_publish_and_sample(
    evaluated_run: Path, tmp_path: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """publish.py saves a folder; sample.py --model draws from a repository into samples/NAME of the current folder."""
    arguments = ["publish.py", "--run_dir", str(evaluated_run), "--folder", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "pipelines" / "publish.py"), run_name="__main__")
    assert ended.value.code == 0
    with hub_of(tmp_path / "model") as (address, _):
        flags = ("--num_images", "3", "--dtype", "float32", "--batch_size", "3", "--seed", "1")
        command, environment = command_of("sample", "--model", REPOSITORY, *flags)
        environment |= {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    paths = sorted((tmp_path / "samples" / "shapes").glob("seed1*.png"))
    assert torch.equal(torch.stack([read_sample(path) for path in paths]), samples(generator))


@pytest.mark.parametrize(
    ("script", "flags", "says"),
    [
        ("sample", (), "run_dir, model: give one of them"),
        ("sample", ("--run_dir", "a", "--model", "b"), "run_dir, model: give one of them"),
        ("sample", ("--model", "nothing"), "nothing: not a folder"),
        ("publish", ("--run_dir", "a"), "give one of them"),
        ("publish", ("--run_dir", "a", "--folder", "b", "--private", "true"), "private"),
    ],
)
def test_wrong_flags_are_refused(script: str, flags: tuple[str, ...], says: str) -> None:
    """None or both of two flags, and flags without effect, give a short message."""
    assert says in refusal(script, *flags)
