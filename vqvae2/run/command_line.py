"""From the command line to a checked configuration, and from an error to a message."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

from vqvae2.config import Config, check
from vqvae2.errors import StoppedError, UserError
from vqvae2.run.directory import recorded_sections
from vqvae2.run.given import check_names, flag_values, load_yaml, merged, read_file
from vqvae2.run.stopping import end_with_parent

DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
FOOT = (
    "The fields of a prior are listed by --priors.help; set one as --priors.LEVEL.FIELD, such as --priors.top.layers 8."
)
HELP = frozenset({"--help", "-h", "--priors.help"})
INTERRUPTED = 130  # 128 + SIGINT
STOPPED = 75  # EX_TEMPFAIL of sysexits.h

T = TypeVar("T")


set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
set_parsing_settings(unset_sentinel=True)  # or null would pass for a value of every type


class OneLineParser(ArgumentParser):
    """Refuses without printing its usage first."""

    def error(self, message: str, *_: Any, **__: Any) -> NoReturn:
        """Exit with code 2."""
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        self.exit(2, f"error: {' '.join(lines)} (see --help)\n")


def parse_config(
    arguments: Sequence[str] | None = None,
    description: str = "",
    default_config: Path = DEFAULT_CONFIG,
    of_run: bool = False,
    **options: tuple[Any, Any, str],
) -> tuple[Config, dict[str, Any]]:
    """A run's configuration from --config and flags; a flag wins over the file wherever it stands.

    A field that neither gives has the value that the run's stages were begun with, and its default in a new run.

    Args:
        arguments: of the command line; None: the program's own.
        description: what the program does, for --help.
        default_config: the file that is read where --config is not given.
        of_run: where --config is not given but --run_dir is, read the configuration in that folder instead.
        **options: more flags than the configuration's, by name: type, default and meaning.

    Returns:
        The checked configuration, and the values of `options`.

    Raises:
        UserError: a field is unknown, or its value cannot work.
    """
    parser = OneLineParser(description=description, epilog=FOOT, allow_abbrev=False)
    parser.add_argument("--config", action="config", help=f"the run's YAML file (default: {default_config.name})")
    for name, (kind, default, meaning) in options.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=meaning)
    parser.add_class_arguments(Config)

    files, flags = _config_and_flags(sys.argv[1:] if arguments is None else arguments)
    given = flag_values(flags, set(Config.__dataclass_fields__))
    if files != [""] and not HELP.intersection(flags):  # an empty --config is for the parser to refuse
        file = Path(files[-1]) if files else _config_of_run(given) if of_run and "run_dir" in given else default_config
        check_names(given, spelt="--{}")
        given = merged(read_file(file), given)
        check_names(given)
        files = [_as_text(merged(_recorded(given), given))]
    namespace = parser.parse_args([*(x for file in files for x in ("--config", file)), *flags])
    values = parser.instantiate(namespace)
    config = Config(**{key: values[key] for key in Config.__dataclass_fields__})
    check(config)
    return config, {name: values[name] for name in options}


def _config_and_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that --config names, and all other arguments."""
    rest = list(arguments)
    files: list[str] = []
    i = 0
    while i < len(rest):
        if rest[i] == "--config":
            rest.pop(i)
            files.append(rest.pop(i) if i < len(rest) else "")
        elif rest[i].startswith("--config="):
            files.append(rest.pop(i).removeprefix("--config="))
        else:
            i += 1
    return files, rest


def _config_of_run(given: dict[str, Any]) -> Path:
    path = Path(str(given["run_dir"])) / "config.yaml"
    if not path.exists():
        raise UserError(f"{path}: not there: finish the stages of this run first, or give --config")
    return path


def _recorded(given: dict[str, Any]) -> dict[str, Any]:
    """What the stages of the run were begun with, of the levels that it is given."""
    run_dir, priors = given.get("run_dir"), given.get("priors")
    recorded = recorded_sections(Path(run_dir)) if isinstance(run_dir, str) and "\0" not in run_dir else {}
    if "priors" in recorded and isinstance(priors, dict):
        recorded["priors"] = {name: x for name, x in recorded["priors"].items() if name in priors}
    return recorded


def _as_text(given: dict[str, Any]) -> str:
    """Sections as a text that the parser reads where it expects a file's name."""
    return yaml.safe_dump(given, sort_keys=False)


def parse_options(kind: type[T], description: str, arguments: Sequence[str] | None = None) -> T:
    """The fields of a dataclass from flags."""
    parser = OneLineParser(description=description, allow_abbrev=False)
    parser.add_class_arguments(kind)
    values = parser.instantiate(parser.parse_args(arguments))
    return kind(**{key: values[key] for key in kind.__dataclass_fields__})


def run(main: Callable[[], object]) -> NoReturn:
    """Run a program and end with its exit code.

    0: done; 1: a UserError; 2: bad arguments; 75: asked to stop, and saved; 130: interrupted, and not saved.
    """
    rank = os.environ.get("RANK", "0")
    end_with_parent()
    try:
        main()
    except UserError as error:
        if rank == "0" or not error.reaches_all:
            where = "" if rank == "0" else f" on process {rank}"
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except StoppedError as stopped:
        if rank == "0":
            print(f"{stopped}: run the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from what was saved", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    sys.exit(0)
