"""Parsing of the command line into a checked configuration, and conversion of errors to messages and exit codes."""

import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader, set_parsing_settings

from vqvae2.config import Config, check
from vqvae2.errors import StoppedError, UserError
from vqvae2.run.directory import accessing, recorded_sections
from vqvae2.run.given import check_names, flag_values, load_yaml, merged, read_file
from vqvae2.run.stopping import Stop, end_with_parent, stop_at_signals

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
FOOT = "--priors.help lists the fields of a prior. Set one with --priors.LEVEL.FIELD, such as --priors.top.layers 8."
HELP = frozenset({"--help", "-h", "--priors.help"})
INTERRUPTED = 130  # 128 + SIGINT
STOPPED = 75  # EX_TEMPFAIL of sysexits.h
# How often a thread of PyTorch (GNU OpenMP) checks whether the others have finished before it sleeps. The default of
# 300,000 occupies a core that a thread of another process, or the awaited thread, could use; see tests/README.md.
SPIN_COUNT = "2000"

T = TypeVar("T", bound="DataclassInstance")


set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
set_parsing_settings(unset_sentinel=True)  # otherwise null is valid for every type


class OneLineParser(ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str, *_: Any, **__: Any) -> NoReturn:
        """Print the message and exit with code 2."""
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        self.exit(2, f"error: {' '.join(lines)} (see --help)\n")


def parse_config(
    arguments: Sequence[str] | None = None,
    description: str = "",
    default_config: Path = DEFAULT_CONFIG,
    of_run: bool = False,
    **options: tuple[Any, Any, str],
) -> tuple[Config, dict[str, Any]]:
    """Parse the configuration of a run from the file of --config and from flags.

    A flag overrides the file, whatever their order. A field that neither of them sets keeps the value with which the
    stages of the run were started; in a new run it has its default. Without --config, the file is config.yaml in the
    directory of --run_dir if that run has begun, and otherwise `default_config`.

    Args:
        arguments: command-line arguments; None: those of this process.
        description: description of the script for --help.
        default_config: path of the configuration file of a new run without --config.
        of_run: whether to refuse a --run_dir that has not begun if it is given without --config.
        **options: flags in addition to those of the configuration, by name: (type, default, help text).

    Returns:
        The checked configuration, and the values of `options` by name.

    Raises:
        UserError: a field is unknown, a value is not valid, or a file cannot be read.
        SystemExit: with code 2, an argument cannot be parsed.
    """
    parser = OneLineParser(description=description, epilog=FOOT, allow_abbrev=False)
    parser.add_argument(
        "--config", action="config", help=f"Path of the run's YAML file (default: {default_config.name})"
    )
    for name, (kind, default, meaning) in options.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=meaning)
    parser.add_class_arguments(Config)

    files, flags = _config_and_flags(sys.argv[1:] if arguments is None else arguments)
    given = flag_values(flags, set(Config.__dataclass_fields__))
    if files != [""] and not HELP.intersection(flags):  # the parser refuses an empty --config
        check_names(given, spelt="--{}")
        if not files:
            files = [str(_config_of_run(given, needed=of_run) or default_config)]
        given = _with_files(given, files, Config)
        files = [_as_text(merged(_recorded(given), given))]
    namespace = parser.parse_args([*(x for file in files for x in ("--config", file)), *flags])
    values = parser.instantiate(namespace)
    config = _instance(Config, values)
    check(config)
    return config, {name: values[name] for name in options}


def parse_sections(
    kind: type[T],
    description: str,
    default_config: Path,
    arguments: Sequence[str] | None = None,
) -> T:
    """Parse a configuration that is not a run's, of the dataclass `kind`; otherwise as `parse_config`."""
    parser = OneLineParser(description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help=f"Path of the YAML file (default: {default_config.name})")
    parser.add_class_arguments(kind)
    files, flags = _config_and_flags(sys.argv[1:] if arguments is None else arguments)
    given = flag_values(flags, set(kind.__dataclass_fields__))
    if files != [""] and not HELP.intersection(flags):
        check_names(given, kind, spelt="--{}")
        files = [_as_text(_with_files(given, files or [str(default_config)], kind))]
    values = parser.instantiate(parser.parse_args([*(x for file in files for x in ("--config", file)), *flags]))
    return _instance(kind, values)


def _instance(kind: type[T], values: Any) -> T:
    """The dataclass with those of the values that are its fields."""
    return kind(**{key: values[key] for key in kind.__dataclass_fields__})


def _with_files(given: dict[str, Any], files: Sequence[str], kind: type) -> dict[str, Any]:
    """Add the fields of YAML files to those given by flags, and check all names; flags first, then the last file."""
    for file in reversed(files):
        given = merged(read_file(Path(file)), given)
    check_names(given, kind)
    return given


def _config_and_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the files of --config from all other arguments."""
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


def _run_dir(given: dict[str, Any]) -> Path | None:
    """The run directory that is given, if there is one; what is no path is refused later, with all other fields."""
    run_dir = given.get("run_dir")
    return None if run_dir is None or "\0" in str(run_dir) else Path(str(run_dir))


def _config_of_run(given: dict[str, Any], needed: bool) -> Path | None:
    """The configuration of the run that --run_dir names; None: it has not begun, or there is no such flag."""
    run_dir = _run_dir(given)
    path = run_dir / "config.yaml" if run_dir else None
    if path and not path.exists():
        if not needed:
            return None
        raise UserError(f"{path}: file not found: run the stages of this run first, or pass --config")
    return path


def _recorded(given: dict[str, Any]) -> dict[str, Any]:
    """Return the sections with which the stages of the run were started, without priors of levels not in `given`."""
    run_dir, priors = _run_dir(given), given.get("priors")
    recorded = recorded_sections(run_dir) if run_dir else {}
    if "priors" in recorded and isinstance(priors, dict):
        recorded["priors"] = {name: x for name, x in recorded["priors"].items() if name in priors}
    return recorded


def _as_text(given: dict[str, Any]) -> str:
    """Convert sections to YAML text, which the parser accepts in place of a file name."""
    return yaml.safe_dump(given, sort_keys=False)


def parse_options(kind: type[T], description: str, arguments: Sequence[str] | None = None) -> T:
    """Parse the fields of a dataclass from flags.

    Args:
        kind: the dataclass.
        description: description of the script for --help.
        arguments: command-line arguments; None: those of this process.
    """
    parser = OneLineParser(description=description, allow_abbrev=False)
    parser.add_class_arguments(kind)
    values = parser.instantiate(parser.parse_args(arguments))
    return _instance(kind, values)


def parse_record(kind: type[T], record: dict[str, Any]) -> T:
    """Build a dataclass from the fields that a file contains, and check their types.

    Args:
        kind: the dataclass.
        record: its fields as plain dictionaries, lists and values; nested fields must be known, see `check_names`.

    Raises:
        UserError: a field has a wrong type or is missing.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        values = parser.instantiate(parser.parse_object(deepcopy(record)))
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    return _instance(kind, values)


def run(main: Callable[[], object]) -> NoReturn:
    """Run the main function of a script and exit with one of these codes.

    0: finished; 1: a UserError, or a file or folder that cannot be accessed; 2: invalid arguments; 75: stopped on
    request, after saving what there was to save; 130: interrupted before saving.
    """
    rank = os.environ.get("RANK", "0")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when PyTorch is imported
    end_with_parent()
    try:
        with stop_at_signals(), accessing():
            main()
    except UserError as error:
        if rank == "0" or not error.reaches_all:
            where = "" if rank == "0" else f" on process {rank}"
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
        _exit(1)
    except StoppedError as stopped:
        if rank == "0":
            print(f"{stopped}: run the same command again to resume", file=sys.stderr, flush=True)
        _exit(STOPPED)
    except Stop as stop:
        if rank == "0":
            print(f"stopped by {stop}: run the same command again to resume", file=sys.stderr, flush=True)
        _exit(STOPPED)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume from what was saved", file=sys.stderr, flush=True)
        _exit(INTERRUPTED)
    _exit(0)


def _exit(code: int) -> NoReturn:
    """Exit with `code`.

    One of several processes skips the interpreter's shutdown: on a busy machine PyTorch's threads of a process group
    may still run then, which aborts a process that has finished its work.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os._exit(code)
    sys.exit(code)
