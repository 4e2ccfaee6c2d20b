"""Tests of the pipelines: output files, resuming, several processes and invalid input."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import by_hand
from tests.conftest import call, launch, made_once, refusal, succeed, write_config
from vqvae2.codes import CodeStore
from vqvae2.images.grids import save_image


@pytest.mark.parametrize("path", sorted(Path(by_hand.__file__).parent.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_scripts_that_are_run_by_hand_can_be_imported(path):
    """What they use of the package, and of one another, is still there."""
    importlib.import_module(f"{by_hand.__name__}.{path.stem}")


def test_stages_leave_the_run_directory_of_the_contract(tiny_run):
    """Every training stage writes its configuration, metrics and checkpoints, and exports its model."""
    _, run_dir = tiny_run
    for stage in ("stage1", "stage3", "stage4/bottom"):
        assert (run_dir / stage / "config.yaml").exists()
        assert [x.name for x in sorted((run_dir / stage / "checkpoints").iterdir())] == [
            "step_00000002",
            "step_00000004",
        ]
        assert json.loads((run_dir / stage / "model.json").read_text())["step"] == 4
        lines = [json.loads(x) for x in (run_dir / stage / "metrics.jsonl").read_text().splitlines()]
        assert [(x["step"], x["split"]) for x in lines] == [(2, "train"), (4, "train"), (4, "validation")]
    validation = json.loads((run_dir / "stage1" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"mse", "psnr", "top_usage", "bottom_perplexity"} <= set(validation)
    assert Image.open(run_dir / "stage1" / "images" / "step_00000004.png").size == (8 * 34 + 2, 3 * 18 + 2)


def test_codes_are_those_of_the_exported_autoencoder(tiny_run):
    """The store contains the codes that the Generator computes for the same images, with their labels and names."""
    from vqvae2 import Generator
    from vqvae2.images.sources import open_images
    from vqvae2.run.command_line import parse_config

    config_path, run_dir = tiny_run
    config, _ = parse_config(["--config", str(config_path)])
    images = open_images(config.images, config.seed).validation
    store = CodeStore(run_dir / "codes" / "validation.lmdb")
    assert len(store) == len(images)
    generator = Generator.from_run(run_dir, dtype="float32")
    for i in (0, 7, len(store) - 1):
        expected = generator.encode(images.load(i)[None])
        record = store[i]
        assert (record.label, record.name) == (images.labels[i], images.names[i])
        assert all((record.codes[name] == expected[name][0]).all() for name in ("top", "bottom"))


def test_a_second_run_changes_nothing(tiny_run):
    """A finished stage reports that it has finished, exits with status 0 and does not modify its files."""
    config, run_dir = tiny_run
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*model.*")}
    store = CodeStore(run_dir / "codes" / "validation.lmdb")
    name = store[0].name  # a process that reads the codes may run stage 2 again
    for stage in (1, 2, 3, 4):
        assert "finished" in succeed(f"stage{stage}", "--config", str(config))
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*model.*")}
    assert store[0].name == name


def test_sample_writes_images_that_depend_on_their_own_index_alone(tiny_run, tmp_path):
    """sample.py writes one PNG per image and an image grid; the first images are the same if more are requested."""
    run_dir = shutil.copytree(tiny_run[1], tmp_path / "run")
    arguments = ("--run_dir", str(run_dir), "--label", "star", "--top_p", "0.9", "--batch_size", "2", "--seed", "5")
    launch("sample", *arguments, "--num_images", "2")
    first = {x.name: np.array(Image.open(x)) for x in (run_dir / "samples").glob("seed5*.png")}
    assert len(first) == 2
    for path in (run_dir / "samples").glob("seed5*.png"):
        path.unlink()
    out = succeed("sample", *arguments, "--num_images", "3")
    assert str(run_dir / "samples" / "grid_seed5") in out
    again = {x.name: np.array(Image.open(x)) for x in (run_dir / "samples").glob("seed5*.png")}
    assert len(again) == 3
    assert all((again[name] == image).all() and image.shape == (16, 32, 3) for name, image in first.items())


def test_samples_of_another_precision_or_batch_size_are_others(tiny_run, tmp_path):
    """Samples with another precision or batch size have other file names, because they are rounded differently."""
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run[1], run_dir)
    folder = run_dir / "samples"
    arguments = ("--run_dir", str(run_dir), "--num_images", "2", "--seed", "77")
    for i, flags in enumerate((("--dtype", "bfloat16"), ("--dtype", "float32"), ("--batch_size", "3"))):
        succeed("sample", *arguments, *flags)
        assert len(list(folder.glob("seed77_*.png"))) == 2 * (i + 1)
    assert "temperature" in refusal("sample", *arguments, "--temperature", "0")


@pytest.fixture(scope="session")
def on_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration, the outputs and the run of stages 1 and 2 on two processes, with TensorBoard."""

    def make(folder: Path) -> None:
        config = write_config(folder, folder / "run")
        for stage in ("stage1", "stage2"):
            result = call(stage, "--config", str(config), "--trackers", "[tensorboard]", processes=2)
            assert result.returncode == 0, result.stdout + result.stderr
            (folder / f"{stage}_stdout").write_bytes(result.stdout.encode())
            (folder / f"{stage}_stderr").write_bytes(result.stderr.encode())

    return made_once(tmp_path_factory, "on_two_processes", make)


def test_two_processes_make_the_run_of_one(tiny_run, on_two_processes):
    """Stages 1 and 2 give the same autoencoder and codes on two processes as on one, up to rounding."""
    folders = (tiny_run[1], on_two_processes / "run")
    assert (on_two_processes / "stage1_stdout").read_text().count("held out") == 1  # by the main process only
    one, two = (load_file(x / "stage1" / "model.safetensors") for x in folders)
    for name, tensor in one.items():
        np.testing.assert_allclose(two[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)
    stores = [CodeStore(x / "codes" / "train.lmdb") for x in folders]
    assert [x.name for x in stores[1]] == [x.name for x in stores[0]]
    agreeing = [(a.codes["bottom"] == b.codes["bottom"]).double().mean().item() for a, b in zip(*stores, strict=True)]
    assert np.mean(agreeing) > 0.97


def test_sample_begins_from_an_image(tiny_run, tmp_path):
    """--complete and --resample write separate samples; invalid values and combinations of flags are rejected."""
    run_dir = shutil.copytree(tiny_run[1], tmp_path / "run")
    picture = tmp_path / "cat, asleep.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(picture)
    mask = tmp_path / "mask.png"
    pixels = np.full((40, 50), 255, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "white.png")
    pixels[10:30, 15:40] = 0
    Image.fromarray(pixels).save(mask)
    arguments = ("--run_dir", str(run_dir), "--num_images", "2", "--batch_size", "2")
    for flags, name in (
        (("--complete", str(picture), "--keep", "left"), "complete-cat, asleep"),
        (("--resample", "bottom", "--image", str(picture)), "resample-bottom"),
        (("--complete", str(picture), "--keep", str(mask)), "keep-mask-"),
        (("--complete", str(picture), "--keep", str(mask), "--particles", "3"), "_particles3_"),
    ):
        before = set((run_dir / "samples").glob("*"))
        succeed("sample", *arguments, *flags)
        new = [x.name for x in set((run_dir / "samples").glob("*")) - before]
        assert len(new) == 3 and all(name in x for x in new)
    for flags, said in (
        (("--resample", "bottom"), "image: give both"),
        (("--complete", str(picture), "--keep", "half"), "keep: 'half'"),
        (("--complete", "missing.png"), "missing.png"),
        (("--resample", "middle", "--image", str(picture)), "resample: 'middle'"),
        (("--complete", str(picture), "--keep", str(tmp_path / "white.png")), "keeps all pixels"),
        (("--complete", str(picture), "--keep", str(tmp_path / "none.png")), "none.png"),
        (("--complete", str(picture), "--particles", "0"), "particles: 0"),
        (("--particles", "2"), "particles: 2"),
    ):
        assert said in refusal("sample", *arguments, *flags)


@pytest.fixture(scope="module")
def stage1_of_one_process(tmp_path_factory) -> dict[int, tuple[list[float], dict[str, torch.Tensor]]]:
    """Result of `losses_and_codebooks` for one process."""
    return losses_and_codebooks(tmp_path_factory.mktemp("one"), None)


def losses_and_codebooks(folder: Path, processes: int | None):
    """Losses and codebooks of stage 1 after 1 and after 20 updates, with k-means initialization before the first."""
    config = write_config(folder, folder / "run")
    flags = ["--config", str(config), "--autoencoder.continuous_steps", "0", "--stage1.schedule", "constant"]
    found = {}
    for total_steps in (1, 20):
        arguments = ("stage1", *flags, "--stage1.total_steps", str(total_steps))
        succeed(*arguments) if processes is None else launch(*arguments, processes=processes)
        stage = folder / "run" / "stage1"
        weights = load_file(stage / "model.safetensors")
        lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        found[total_steps] = (
            [x["loss"] for x in lines if x["split"] == "train"],
            {name: x for name, x in weights.items() if name.endswith("codebook")},
        )
    return found


@pytest.mark.parametrize("processes", [4])
def test_several_processes_train_as_one(stage1_of_one_process, tmp_path, processes):
    """Several processes give the losses and codebooks of one process, 1 and 20 updates after k-means initialization."""
    several = losses_and_codebooks(tmp_path, processes)
    for total_steps, (losses, codebooks) in stage1_of_one_process.items():
        assert len(codebooks) == 2 and len(losses) == 1 + total_steps // 2  # a line at step 1, then every second step
        assert several[total_steps][0] == pytest.approx(losses, rel=1e-4)
        for name, codebook in codebooks.items():
            scale = codebook.abs().max().item()
            torch.testing.assert_close(several[total_steps][1][name], codebook, rtol=1e-5, atol=1e-5 * scale)


def test_stages_out_of_order_are_refused(tmp_path):
    """A stage with missing input names the stage to run first and writes nothing."""
    config = str(write_config(tmp_path, tmp_path / "run"))
    assert "stage1" in refusal("stage2", "--config", config)
    assert "stage1" in refusal("sample", "--run_dir", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "codes").exists()


def test_codes_of_another_autoencoder_are_refused(tiny_run, tmp_path):
    """Codes and priors that were made with another autoencoder are rejected, and the error names the files."""
    config, run_dir = tiny_run
    other = tmp_path / "run"
    shutil.copytree(run_dir, other)
    shutil.rmtree(other / "stage1")
    succeed("stage1", "--config", str(config), "--run_dir", str(other), "--seed", "1")
    for stage in ("stage2", "stage3"):
        message = refusal(stage, "--config", str(config), "--run_dir", str(other), "--seed", "1")
        assert "train.lmdb" in message
    shutil.rmtree(other / "codes")
    succeed("stage2", "--config", str(config), "--run_dir", str(other), "--seed", "1")
    message = refusal("stage3", "--config", str(config), "--run_dir", str(other), "--seed", "1")
    assert str(other / "stage3") in message and str(other / "stage1" / "model.safetensors") in message


def test_stage_2_writes_cropped_and_flipped_copies(tiny_run, tmp_path):
    """Each training image is written with its copies, held-out images without; other copies need a new store."""
    config, run_dir = tiny_run
    shutil.copytree(run_dir / "stage1", tmp_path / "run" / "stage1")
    for i, name in enumerate(json.loads((run_dir / "stage1" / "model.json").read_text())["classes"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        save_image(torch.full((3, 16, 32), 20 * i, dtype=torch.uint8), tmp_path / "images" / name / "a.png")
    root = str(tmp_path / "images")
    folder = ["--images.source", "folder", "--images.root", root, "--images.validation_root", root]
    given = ["--config", str(config), "--run_dir", str(tmp_path / "run"), *folder]
    given += ["--images.random_resized_crop", "[0.5, 0.9]", "--images.max_images", "null"]
    succeed("stage2", *given, "--stage2.cropped_copies", "2", "--stage2.flipped_copies", "true")
    names = [record.name for record in CodeStore(tmp_path / "run" / "codes" / "train.lmdb")]
    held_out = len(CodeStore(tmp_path / "run" / "codes" / "validation.lmdb"))
    assert len(names) == len(set(names)) == 6 * held_out and names[-1].endswith("a.png cropped 2 flipped")
    message = refusal("stage2", *given, "--stage2.cropped_copies", "5")
    assert "a.png cropped 2 flipped" in message and "a.png cropped 5" in message


def test_training_does_not_wait_for_the_compiler(tiny_run, tmp_path, monkeypatch):
    """Importing torch._dynamo takes two seconds; PyTorch's optimizers and Accelerate would do it at the first step."""
    config, run_dir = tiny_run
    shutil.copytree(run_dir / "codes", tmp_path / "run" / "codes")
    shutil.copytree(run_dir / "stage1", tmp_path / "run" / "stage1")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # prints each module that is imported
    result = call("stage3", "--config", str(config), "--run_dir", str(tmp_path / "run"))
    assert result.returncode == 0 and "torch.optim.adam\n" in result.stderr, result.stderr[-1000:]
    assert "torch._dynamo" not in result.stderr


def test_lost_weights_are_exported_again(tiny_run, tmp_path):
    """A finished stage without its weights file exports it again from the last checkpoint."""
    config, run_dir = tiny_run
    shutil.copytree(run_dir / "stage1", tmp_path / "run" / "stage1")
    lost = tmp_path / "run" / "stage1" / "model.safetensors"
    before = lost.read_bytes()
    lost.unlink()
    succeed("stage1", "--config", str(config), "--run_dir", str(tmp_path / "run"))
    assert lost.read_bytes() == before


def test_changed_configuration_is_refused_with_both_values(tiny_run):
    """A finished stage cannot be continued with another batch size; the error gives both values."""
    config, _ = tiny_run
    message = refusal("stage1", "--config", str(config), "--stage1.batch_size", "4", "--stage1.total_steps", "6")
    assert "stage1.batch_size was 8 and is now 4" in message


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--images.source", "folder", "--images.root", "nowhere"], "nowhere"),
        (["--images.size", "20"], "images.size"),
        (["--stage1.batch_size", "0"], "stage1.batch_size"),
        (["--autoencoder.hidden_chanels", "3"], "hidden_chanels"),
        (["--stage1.total_steps", "many"], "total_steps"),
        (["--stage1.mixed_precision", "fp16"], "mixed_precision"),
        (["--run_dir", str(Path(__file__))], "test_pipelines.py"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, names):
    """The message names the invalid argument, and nothing is written."""
    config = write_config(tmp_path, tmp_path / "run")
    assert names in refusal("stage1", "--config", str(config), *arguments)
    assert not (tmp_path / "run").exists()


def test_unknown_label_is_refused_with_those_there_are(tiny_run):
    """The message for an unknown label lists the classes."""
    _, run_dir = tiny_run
    assert "circle" in refusal("sample", "--run_dir", str(run_dir), "--label", "unicorn")


def test_one_level_has_no_stage_4(tmp_path):
    """Stage 4 reports that there is nothing to do if there is only one level."""
    text = write_config(tmp_path, tmp_path / "run").read_text()
    lines = [x for x in text.split("  bottom:")[0].splitlines() if "name: bottom" not in x]
    (tmp_path / "one.yaml").write_text("\n".join(lines))
    assert "nothing to do" in succeed("stage4", "--config", str(tmp_path / "one.yaml"))


def test_trackers_and_the_bar_are_those_of_the_first_process(on_two_processes):
    """Two processes log the metrics of metrics.jsonl to TensorBoard once and show a single progress bar."""
    assert (on_two_processes / "stage1_stdout").read_text().count("step 4: mse") == 1
    said = (on_two_processes / "stage1_stderr").read_bytes().decode()
    last = [line for line in re.split(r"[\r\n]", said) if line.startswith("stage1: 100%")][-1]
    assert re.search(r"4/4 \[\d\d:\d\d<00:00, .*loss [\d.]+, [\d.e+]+ images/s", last), last

    stage = on_two_processes / "run" / "stage1"
    files = [EventAccumulator(str(file)).Reload() for file in stage.rglob("events.out.tfevents.*")]
    (found,) = [file for file in files if "train/loss" in file.Tags()["scalars"]]  # another has the configuration
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    for split, name in (("train", "loss"), ("validation", "mse")):
        expected = [(x["step"], x[name]) for x in lines if x["split"] == split]
        written = [(event.step, event.value) for event in found.Scalars(f"{split}/{name}")]
        assert written == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_a_tracker_that_is_not_installed_is_named(tiny_run):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    message = refusal("stage1", "--config", str(tiny_run[0]), "--trackers", "[wandb]")
    assert "trackers: wandb is not installed" in message and "pip install" in message
