"""Command line parsing: precedence of flags and files, and error messages."""

import datetime
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, call, write_config
from tests.conftest import refusal as short_refusal
from vqvae2.errors import UserError
from vqvae2.run import command_line
from vqvae2.run.command_line import parse_config, run

LONG = "x" * 256  # characters, more than a file name may have
NOBODY = "~nobody_of_this_name/x"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_config(tmp_path, tmp_path / "run")


def refusal(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Return the error message of invalid arguments; check the exit code, the length and that there is no traceback."""
    with pytest.raises(SystemExit) as exit_:
        run(lambda: parse_config(arguments))
    message = capsys.readouterr().err
    assert exit_.value.code in (1, 2) and message.startswith("error: ") and message.count("\n") <= 3
    return message


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_a_flag_wins_wherever_it_stands(path: Path, form: list[str]):
    """A flag takes precedence over the file, whether it comes before or after --config."""
    file = [x.format(path) for x in form]
    before, _ = parse_config(["--seed", "7", *file])
    after, _ = parse_config([*file, "--seed", "7"])
    assert before == after and before.seed == 7
    assert before.autoencoder.levels[1].codebook_size == 300  # other fields come from the file


def test_nested_flags_reach_their_fields(path: Path):
    """Nested flags set exactly their fields and leave others unchanged."""
    flags = [
        "--images.size",
        "64",
        "--priors.top.layers",
        "3",
        "--config",
        str(path),
        "--priors.bottom.train.learning_rate",
        "1e-5",
    ]
    config, _ = parse_config(flags)
    plain, _ = parse_config(["--config", str(path)])
    assert (config.images.size, plain.images.size) == (64, [16, 32])
    assert (config.priors["top"].layers, config.priors["bottom"].layers) == (3, 2)
    assert (config.priors["top"].hidden_channels, config.priors["top"].train) == (
        16,
        plain.priors["top"].train,
    )
    train = config.priors["bottom"].train
    assert (train.learning_rate, train.total_steps) == (1e-5, 4)


def test_several_files_are_laid_over_one_another(path: Path, tmp_path: Path):
    """Later files take precedence over earlier ones, and flags over all files; other fields are unchanged."""
    over = tmp_path / "over.yaml"
    over.write_text("seed: 5\nautoencoder: {hidden_channels: 24}\n")
    config, _ = parse_config(["--config", str(path), f"--config={over}", "--seed", "6"])
    assert (config.seed, config.autoencoder.hidden_channels, config.autoencoder.residual_channels) == (6, 24, 8)


def test_height_and_width_from_a_flag(path: Path):
    """--images.size accepts a list."""
    config, _ = parse_config(["--config", str(path), "--images.size", "[32, 16]"])
    assert config.images.height_width == (32, 16)


def test_without_config_the_quickstart_is_used():
    """Without arguments, the configuration is configs/quickstart.yaml."""
    assert parse_config([]) == parse_config(["--config", str(ROOT / "configs" / "quickstart.yaml")])


def test_options_of_a_script_stand_beside_the_configuration(path: Path):
    """Options of a script are returned separately from the configuration; the default of --level is None."""
    assert parse_config(["--config", str(path), "--level", "bottom"], level=(str | None, None, ""))[1] == {
        "level": "bottom"
    }
    assert parse_config(["--config", str(path)], level=(str | None, None, ""))[1] == {"level": None}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--nonsense", "1"], "--nonsense"),
        (["--images.colour", "1"], "--images.colour"),
        (["--images.size", "large"], "images.size"),
        (["--images.size", "60"], "images.size: 60"),
        (["--seed", "1.5"], "seed"),
        (["--stage1.schedule", "linear"], "linear"),
        (["--stage1.learning_rate", "null"], "stage1.learning_rate"),
        (["--stage1.learning_rate", "nan"], "stage1.learning_rate"),
        (["--priors.middle.layers", "2"], "middle"),
        (["--trackers", "[mlflow]"], "mlflow"),
        (["--see", "3"], "--see"),
        (["--config"], "--config"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_flag_is_named(path: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture):
    """Unknown and abbreviated flags, and wrong types or values, give a message with the key or the value."""
    assert says in refusal(["--config", str(path), *flags], capsys)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("run_dir:", "seeds: 3\nrun_dir:", "seeds"),
        ("residual_layers: 1", "residual_layer: 1", "residual_layer"),
        ("residual_layers: 1", "residual_layers: [1]", "autoencoder.residual_layers"),
        ("residual_layers: 1", "residual_layers: null", "autoencoder.residual_layers"),
        ("{name: top, stride: 8,", "{name: top,", "stride"),
        ("source: shapes", "source: null", "images.source"),
        ('stage2: {batch_size: 20, mixed_precision: "no"}', "stage2:", "stage2"),
        ("run_dir:", "# run_dir:", "run_dir"),
    ],
)
def test_a_wrong_field_is_named(path: Path, old: str, new: str, says: str, capsys: pytest.CaptureFixture):
    """A misspelled, missing, empty or wrongly typed field of the YAML file gives a short message that names it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert says in refusal(["--config", str(path)], capsys)


@pytest.mark.parametrize("content", [b"images: {size: [1\n", b"", b"a sentence", b"- 1\n", b"\xff\xfe\x00"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture):
    """A file that is not YAML, or has no sections, gives a message with its name."""
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    assert "broken.yaml" in refusal(["--config", str(path)], capsys)


@pytest.mark.parametrize("name", ["missing.yaml", "missing"])
def test_a_missing_file_is_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture):
    """A missing configuration file gives a message with its name, with any suffix."""
    assert name in refusal(["--config", str(tmp_path / name)], capsys)


def test_a_script_answers_shortly():
    """A script called with an invalid flag exits with a short message and without a traceback."""
    result = call("stage1", "--images.size", "60")
    assert result.returncode == 1 and "images.size: 60" in result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("\n") <= 3


def test_print_config_can_be_read_again(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture):
    """The output of --print_config can be loaded and gives the same configuration."""
    with pytest.raises(SystemExit):
        parse_config(["--config", str(path), "--seed", "5", "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert parse_config(["--config", str(printed)]) == parse_config(["--config", str(path), "--seed", "5"])


def test_help_explains_fields_and_priors(capsys: pytest.CaptureFixture):
    """--help describes the fields and ends with an example of a prior's flag."""
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "Fraction of the images held out" in words and words.endswith("such as --priors.top.layers 8.")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("the cellar is full"), 1, "error: the cellar is full\n"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (PermissionError(13, "Permission denied", "/a/b"), 1, "error: /a/b: cannot be accessed (Permission denied): "),
    ],
)
def test_errors_become_messages(error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture):
    """A UserError, and a path that is denied, exit with code 1 and Ctrl-C with 130, each with a message."""

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run(fail)
    assert exit_.value.code == code and says in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file", "/a/b")],
)
def test_a_defect_keeps_its_traceback(error: Exception):
    """Any other exception is not caught, such as one of access without a path, or of a file that the code expects."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        run(fail)
    assert raised.value is error


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("stage1", ("--run_dir", LONG)),
        ("stage1", ("--run_dir", "RUN/new", "--stage1.start_from", LONG)),
        ("evaluate", ("--run_dir", LONG)),
        ("sample", ("--run_dir", LONG)),
        ("reconstruct", ("--run_dir", "RUN", "--images", LONG)),
        ("reconstruct", ("--run_dir", "RUN", "--images", "RUN/stage1/images", "--output", LONG)),
        ("publish", ("--run_dir", "RUN", "--folder", LONG)),
    ],
)
def test_a_path_that_cannot_be_accessed_is_named(tiny_run: tuple[Path, Path], script: str, flags: tuple[str, ...]):
    """A name that is too long for the file system gives a short message with the path, in every script."""
    given = [flag.replace("RUN", str(tiny_run[1])) for flag in flags]
    config = ["--config", str(tiny_run[0])] if script == "stage1" else []
    message = short_refusal(script, *config, *given)
    assert LONG in message and "cannot be accessed (File name too long): grant permission, or use another" in message


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("stage1", ("--run_dir", "RUN/new", "--stage1.start_from", NOBODY)),
        ("publish", ("--run_dir", "RUN", "--folder", NOBODY)),
    ],
)
def test_a_home_that_is_not_known_is_named(tiny_run: tuple[Path, Path], script: str, flags: tuple[str, ...]):
    """The home directory of an unknown user gives a short message, and no folder is made."""
    given = [flag.replace("RUN", str(tiny_run[1])) for flag in flags]
    config = ["--config", str(tiny_run[0])] if script == "stage1" else []
    assert f"{NOBODY}: there is no such user or home directory" in short_refusal(script, *config, *given)
    assert not Path(NOBODY).parent.exists() and not (tiny_run[1] / "new").exists()


def test_the_configuration_of_a_run_is_found_by_its_folder(tmp_path: Path, path: Path):
    """Without --config, --run_dir loads the configuration of the run.

    In a directory without a configuration, a new run has the default; with `of_run`, it is refused.
    """
    (tmp_path / "config.yaml").write_text(f"seed: 9\n{path.read_text()}")
    for of_run in (False, True):
        for flags in (["--run_dir", str(tmp_path)], ["--trackers", "[]", f"--run_dir={tmp_path}"]):
            assert parse_config(flags, of_run=of_run)[0].seed == 9
        assert parse_config(["--run_dir", str(tmp_path), "--config", str(path)], of_run=of_run)[0].seed == 0
        assert parse_config([], of_run=of_run) == parse_config([])
    other = str(tmp_path / "other")
    assert parse_config(["--run_dir", other])[0] == replace(parse_config([])[0], run_dir=other)
    with pytest.raises(UserError, match=r"config\.yaml.*pass --config"):
        parse_config(["--run_dir", other], of_run=True)


def test_without_the_repository_a_configuration_is_asked_for(tmp_path: Path):
    """Without quickstart.yaml, as in an installed package, the message asks for --config."""
    with pytest.raises(UserError, match="pass an existing file to --config"):
        parse_config([], default_config=tmp_path / "quickstart.yaml")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--priors.top.layerz", "3"], "--priors.top.layerz: unknown field: did you mean layers?"),
        (["--priors.bottom.train.rate", "3"], "--priors.bottom.train.rate: unknown field"),
        (["--autoencoder.levels", "[{name: top, strides: 8}]"], "--autoencoder.levels[0] (top).strides: unknown field"),
        (["--priors", "{top: 3}"], "--priors.top: 3 is not a section"),
    ],
)
def test_unknown_fields_of_levels_and_priors_are_named_with_their_level(path: Path, flags: list[str], says: str):
    """Unknown fields of levels and priors are named with their level."""
    with pytest.raises(UserError, match=re.escape(says)):
        parse_config(["--config", str(path), *flags])


JUNK = [None, True, -1, 0, 3, 10**12, 10**30, 0.5, float("nan"), float("inf"), "", "x", "a\0b", "no", [], [1, "x"],
        [[1]], {}, {"x": 1}, {3: 4}, datetime.date(2020, 1, 1)]  # fmt: skip


def spoilt(content: Any, random: Random) -> Any:
    """Return a copy in which one value, at any depth, is replaced or a key is renamed."""
    if isinstance(content, dict) and content and random.random() < 0.9:
        name = random.choice(sorted(content, key=str))
        if random.random() < 0.1:
            return {("x" if key == name else key): x for key, x in content.items()}
        return {**content, name: spoilt(content[name], random)}
    if isinstance(content, list) and content and random.random() < 0.7:
        i = random.randrange(len(content))
        return [spoilt(x, random) if i == j else x for j, x in enumerate(content)]
    return random.choice(JUNK)


def test_spoilt_configurations_end_in_a_message(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """500 corrupted configurations are accepted, raise a UserError, or are refused by the parser with exit code 2."""
    good, random, refused = yaml.safe_load(path.read_text()), Random(0), 0
    file = tmp_path / "spoilt.yaml"
    for _ in range(500):
        file.write_text(yaml.safe_dump(spoilt(good, random), allow_unicode=True))
        try:
            parse_config(["--config", str(file)])
        except UserError:
            refused += 1
        except SystemExit as end:
            assert end.code == 2
            refused += 1
    assert refused > 300 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("users", "expected"),
    [({}, command_line.SPIN_COUNT), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_waiting_threads_spin_briefly(monkeypatch: pytest.MonkeyPatch, users: dict, expected: str | None) -> None:
    """Scripts limit how long OpenMP threads spin, unless the user's environment says how they wait."""
    monkeypatch.setattr(command_line.os, "environ", dict(users))
    found = []
    with pytest.raises(SystemExit):
        command_line.run(lambda: found.append(command_line.os.environ.get("GOMP_SPINCOUNT")))
    assert found == [expected]
