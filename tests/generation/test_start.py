"""Training that starts from the model of a run, a folder or a repository."""

import json
import shutil
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import refusal
from tests.generation.hub_server import REPOSITORY, hub_of
from vqvae2 import Generator, UserError, stages
from vqvae2.autoencoder import codebooks
from vqvae2.autoencoder.artefact import build_autoencoder, load_autoencoder
from vqvae2.config import TrainConfig
from vqvae2.generation import hub
from vqvae2.generation.pretrained import load_models
from vqvae2.generation.start import start_autoencoder, start_prior
from vqvae2.prior.artefact import build_prior, load_prior
from vqvae2.prior.prior import Prior
from vqvae2.run import launch
from vqvae2.run.command_line import parse_config

Tiny = tuple[Path, Path]


def stage1(tiny_run: Tiny, run_dir: Path, source: Path, *flags: str) -> tuple[dict, Path]:
    """Run stage 1 from a source in this process; returns the content of model.json and the path of the weights."""
    given = ["--config", str(tiny_run[0]), "--run_dir", str(run_dir), "--stage1.start_from", str(source), *flags]
    stages.train_autoencoder(parse_config(given)[0])
    directory = run_dir / "stage1"
    return json.loads((directory / "model.json").read_text()), directory / "model.safetensors"


def new_prior(run: Path, level: str, num_classes: int) -> Prior:
    """An untrained prior with the sizes of that of a run, except for the number of classes."""
    autoencoder = load_autoencoder(run)
    config = load_prior(run, level, autoencoder).module.config
    return build_prior(config, autoencoder.grids, level, num_classes, 5, autoencoder.module.codebooks())


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report page, whose plots take longer than the training."""
    monkeypatch.setattr(stages, "write_report", lambda run_dir: None)


@pytest.fixture(scope="module")
def saved(tiny_run: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's models, saved to a folder."""
    folder = tmp_path_factory.mktemp("saved") / "shapes"
    Generator.from_run(tiny_run[1], device="cpu", dtype="float32").save_pretrained(folder)
    return folder


def test_no_steps_take_the_autoencoder_unchanged(tiny_run: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """With total_steps 0 the weights file and the codes are those of the source, and more steps may follow."""
    source = tiny_run[1] / "stage1" / "model.safetensors"
    description, path = stage1(tiny_run, tmp_path, tiny_run[1], "--stage1.total_steps", "0")
    assert path.read_bytes() == source.read_bytes()
    assert description["started_from"] == {"path": str(tiny_run[1]), "sha256": description["sha256"]}
    assert description["step"] == description["exported_step"] == 0
    images = torch.randint(0, 256, (5, 3, 16, 32), dtype=torch.uint8)
    one, other = (load_autoencoder(run).module.encode(images) for run in (tmp_path, tiny_run[1]))
    assert one.keys() == other.keys() and all(torch.equal(one[level], other[level]) for level in one)
    stage1(tiny_run, tmp_path, tiny_run[1], "--stage1.total_steps", "0")
    assert "finished at step 0, nothing to do" in capfd.readouterr().out
    later, _ = stage1(tiny_run, tmp_path, tiny_run[1], "--stage1.total_steps", "1")
    assert later["step"] == 1 and later["started_from"] == description["started_from"]
    assert later["sha256"] != description["sha256"]


def test_training_goes_on_exactly_and_without_k_means(
    tiny_run: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """k-means is not run. A resumed run gives the same weights without its source: its checkpoint has all of it."""
    monkeypatch.delattr(codebooks, "k_means")
    source = Path(shutil.copytree(tiny_run[1] / "stage1", tmp_path / "source" / "stage1")).parent
    unrevived = ("--autoencoder.revival_window_images", "0")
    description, path = stage1(tiny_run, tmp_path / "run", source, *unrevived)
    uninterrupted, old = path.read_bytes(), load_file(source / "stage1" / "model.safetensors")
    for name, x in load_file(path).items():
        if "codebook" in name:  # moves by little; k-means would give other vectors
            assert 0 < (x - old[name]).norm() < 0.2 * old[name].norm(), name
    for name in ("model.json", "model.safetensors", "checkpoints/step_00000004"):
        removed = path.parent / name
        shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
    shutil.rmtree(source)
    assert [x.name for x in (path.parent / "checkpoints").iterdir()] == ["step_00000002"]
    resumed, _ = stage1(tiny_run, tmp_path / "run", source, *unrevived)
    assert path.read_bytes() == uninterrupted and resumed == description
    flags = ("--config", str(tiny_run[0]), "--run_dir", str(tmp_path / "run"), "--stage1.start_from", str(tiny_run[1]))
    assert "stage1.start_from was" in refusal("stage1", *flags)


def test_a_prior_starts_from_a_saved_folder(tiny_run: Tiny, saved: Path, tmp_path: Path) -> None:
    """The weights are those of the folder, not those that the code vectors give."""
    run = Path(shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns("stage3")))
    flags = ["--priors.top.train.start_from", str(saved), "--priors.top.train.total_steps", "0"]
    config, _ = parse_config(["--config", str(tiny_run[0]), "--run_dir", str(run), *flags])
    stages.train_prior(config, "top")
    description = json.loads((run / "stage3" / "model.json").read_text())
    listed = json.loads((saved / "config.json").read_text())["sha256"]
    assert description["started_from"] == {"path": str(saved), "sha256": listed["prior_top.safetensors"]}
    assert description["sha256"] == listed["prior_top.safetensors"]


@pytest.mark.parametrize(("level", "classes"), [("top", 8), ("top", 3), ("top", 0), ("bottom", 3), ("bottom", 0)])
def test_the_class_table_is_new_where_the_number_of_classes_differs(
    tiny_run: Tiny, tmp_path: Path, level: str, classes: int
) -> None:
    """All other weights are those of the source; for a prior over other codes, a warning is printed."""
    run, said = tiny_run[1], list[str]()
    prior = new_prior(run, level, classes)
    before, train = weights(prior), TrainConfig(start_from=str(run))
    record = start_prior(prior, "another", train, tmp_path, said.append)
    autoencoder = load_autoencoder(run)
    old = load_prior(run, level, autoencoder)
    assert record == {"started_from": {"path": str(run), "sha256": old.sha256}}
    for name, x in prior.state_dict().items():
        is_table = name == "label.embedding.weight" and classes != 8
        assert torch.equal(x, before[name] if is_table else old.module.state_dict()[name]), name
    assert ("label.embedding.weight" in before) == (classes > 0)
    assert sum("warning" in line and "another autoencoder" in line for line in said) == 1
    said.clear()
    start_prior(prior, autoencoder.sha256, train, tmp_path, said.append)
    assert not any("warning" in line for line in said)


def test_an_autoencoder_starts_from_a_repository(
    tiny_run: Tiny, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository is downloaded; its weights are copied, and their SHA-256 is recorded."""
    old = load_autoencoder(tiny_run[1])
    new = build_autoencoder(old.module.config, 3, seed=5)
    with hub_of(saved) as (address, _):
        download = partial(huggingface_hub.snapshot_download, endpoint=address, cache_dir=tmp_path / "cache")
        monkeypatch.setattr(hub, "snapshot_download", download)
        record = start_autoencoder(new, 3, TrainConfig(start_from=REPOSITORY), tmp_path, print)
    assert record == {"started_from": {"path": REPOSITORY, "sha256": old.sha256}}
    assert all(torch.equal(x, old.module.state_dict()[name]) for name, x in new.state_dict().items())


def test_models_start_from_a_bundled_one(tmp_path: Path) -> None:
    """Autoencoder and priors get the weights of the package's model; its name is recorded."""
    old, train = load_models("mnist"), TrainConfig(start_from="mnist")
    autoencoder = old.autoencoder
    new = build_autoencoder(autoencoder.module.config, autoencoder.channels, seed=5)
    record = start_autoencoder(new, autoencoder.channels, train, tmp_path, print)
    assert record == {"started_from": {"path": "mnist", "sha256": autoencoder.sha256}}
    assert all(torch.equal(x, autoencoder.module.state_dict()[name]) for name, x in new.state_dict().items())
    for level, trained in old.priors.items():
        codebooks = autoencoder.module.codebooks()
        prior = build_prior(trained.module.config, autoencoder.grids, level, 10, 5, codebooks)
        record = start_prior(prior, autoencoder.sha256, train, tmp_path, print)
        assert record == {"started_from": {"path": "mnist", "sha256": trained.sha256}}
        assert all(torch.equal(x, trained.module.state_dict()[name]) for name, x in prior.state_dict().items()), level


def test_a_source_that_cannot_be_used_is_named(tiny_run: Tiny, tmp_path: Path) -> None:
    """Each message names the field and what is wrong with it, and nothing is written."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "stage1").mkdir(parents=True)
    run, new = str(tiny_run[1]), ("--config", str(tiny_run[0]), "--run_dir", str(tmp_path / "new"))
    for source, flags, says in (
        ("", (), "'' is not valid"),
        (str(tmp_path / "nowhere"), (), "nowhere: not a folder"),
        (str(tmp_path / "empty"), (), "empty: neither the directory of a run nor the folder of a saved model"),
        (str(tmp_path / "begun"), (), "model.json: file not found: run pipelines/stage1.py until it is finished"),
        (run, ("--autoencoder.hidden_channels", "8"), "autoencoder.hidden_channels is 16 there and 8 here"),
        (run, ("--images.channels", "1"), "images.channels is 3 there and 1 here"),
    ):
        message = refusal("stage1", *new, f"--stage1.start_from={source}", *flags)
        assert message.startswith("error: stage1.start_from: ") and says in message, message
    assert "stage1.total_steps: 0 is not valid: use 1 or more" in refusal("stage1", *new, "--stage1.total_steps", "0")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("model", ["autoencoder", "prior"])
def test_a_source_that_another_process_lacks_stops_all(
    tiny_run: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """A process that has its source stops where another one has not, instead of waiting for it."""
    run, started = tmp_path / "run", list[bool]()
    shutil.copytree(tiny_run[1], run, ignore=shutil.ignore_patterns("stage3", *["stage1"] * (model == "autoencoder")))
    two = launch.Processes(2, 0, True)
    everywhere = launch.refusals_reach_all
    other = UserError("nowhere: not a folder")
    monkeypatch.setattr(stages, "refusals_reach_all", lambda _: everywhere(two))
    monkeypatch.setattr(launch, "gather_object", lambda mine: [*mine, (other if started else None, "b")])
    monkeypatch.setattr(stages, f"start_{model}", lambda *_: started.append(True) or {})
    monkeypatch.setattr(stages, "recorded", lambda *_: pytest.fail("has gone on"))
    config, _ = parse_config(["--config", str(tiny_run[0]), "--run_dir", str(run)])
    with pytest.raises(UserError, match="on host b: nowhere: not a folder"):
        stages.train_autoencoder(config) if model == "autoencoder" else stages.train_prior(config, "top")
    assert started == [True]


def test_a_prior_of_other_sizes_is_refused(tiny_run: Tiny, tmp_path: Path) -> None:
    """Sizes that do not change any shape are compared, too; so are the codes; the prior is unchanged."""
    copy = Path(shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns("codes")))
    prior, train = new_prior(copy, "top", 8), TrainConfig(start_from=str(copy))
    before, path = weights(prior), copy / "stage3" / "model.json"
    description = json.loads(path.read_text())
    heads = {**description, "model": {**description["model"], "attention_heads": 4}}
    for content, says in ((heads, "priors.top.attention_heads is 4 there and 2 here"), (None, "model.json: file not")):
        path.write_text(json.dumps(content)) if content else path.unlink()
        with pytest.raises(UserError, match=f"^priors.top.train.start_from: .*{says}"):
            start_prior(prior, "", train, tmp_path, print)
    with pytest.raises(UserError, match=r"^priors\.bottom\.train\.start_from: .*height of level top is 2 there and 4"):
        autoencoder = load_autoencoder(copy)
        config = load_prior(copy, "bottom", autoencoder).module.config
        grids = [grid._replace(height=2 * grid.height) for grid in autoencoder.grids]
        start_prior(build_prior(config, grids, "bottom", 8, 0), "", train, tmp_path, print)
    assert all(torch.equal(x, before[name]) for name, x in prior.state_dict().items())
