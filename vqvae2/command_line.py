"""From the command line to a checked configuration, and from an error to a message."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings

from vqvae2.config import Config, check
from vqvae2.errors import StoppedError, UserError

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
FOOT = (
    "The fields of a prior are listed by --priors.help; set one as --priors.LEVEL.FIELD, such as --priors.top.layers 8."
)
INTERRUPTED = 130  # 128 + SIGINT
STOPPED = 75  # EX_TEMPFAIL of sysexits.h

T = TypeVar("T")


class Yaml12Loader(yaml.SafeLoader):
    """YAML as of version 1.2, where `no` is a word and 1e-3 a number; 1.1 makes them false and a word."""


Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
set_loader("yaml", lambda text: yaml.load(text, Yaml12Loader), exceptions=(yaml.YAMLError,))
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
    **options: tuple[Any, Any, str],
) -> tuple[Config, dict[str, Any]]:
    """A run's configuration from --config and flags; a flag wins over the file wherever it stands.

    Args:
        arguments: of the command line; None: the program's own.
        description: what the program does, for --help.
        default_config: the file that is read where --config is not given.
        **options: more flags than the configuration's, by name: type, default and meaning.

    Returns:
        The checked configuration, and the values of `options`.
    """
    parser = OneLineParser(description=description, epilog=FOOT, allow_abbrev=False)
    parser.add_argument("--config", action="config", help=f"the run's YAML file (default: {default_config.name})")
    for name, (kind, default, meaning) in options.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=meaning)
    parser.add_class_arguments(Config)
    namespace = parser.parse_args(_config_first(sys.argv[1:] if arguments is None else arguments, default_config))
    _refuse_empty_sections(namespace)
    values = parser.instantiate(namespace)
    config = Config(**{key: values[key] for key in Config.__dataclass_fields__})
    check(config)
    return config, {name: values[name] for name in options}


def config_of_run(arguments: Sequence[str] | None = None) -> Path:
    """The configuration that the run of the flag --run_dir was made with; the default one where there is none."""
    values = sys.argv[1:] if arguments is None else list(arguments)
    named = [x.partition("=")[2] for x in values if x.startswith("--run_dir=")]
    named += [value for flag, value in pairwise(values) if flag == "--run_dir"]
    if not named or any(x.split("=")[0] == "--config" for x in values):
        return DEFAULT_CONFIG
    path = Path(named[-1]) / "config.yaml"
    if not path.exists():
        raise UserError(f"{path}: not there: finish the stages of this run first, or give --config")
    return path


def _refuse_empty_sections(namespace: Namespace) -> None:
    sections = {name: namespace[name] for name in ("images", "autoencoder", "stage1", "stage2")}
    sections |= {f"priors.{name}.train": prior["train"] for name, prior in namespace.priors.items()}
    for key, section in sections.items():
        if section is None:
            raise UserError(f"{key}: empty: give it fields, or leave it out")


def _config_first(arguments: Sequence[str], default_config: Path) -> list[str]:
    """The same arguments with --config moved to the front, where it cannot overwrite a flag."""
    rest = list(arguments)
    files: list[str] = []
    i = 0
    while i < len(rest):
        if rest[i] == "--config" and i + 1 < len(rest):
            files += [rest.pop(i), rest.pop(i)]
        elif rest[i].startswith("--config="):
            files.append(rest.pop(i))
        else:
            i += 1
    if not files:
        files = ["--config", str(default_config)]
    path = Path(files[-1].removeprefix("--config="))
    if path.suffix in (".yaml", ".yml") or path.exists():
        _check_yaml(path)
    return files + rest


def _check_yaml(path: Path) -> None:
    """Say what is wrong with a file in terms of its lines, before jsonargparse does in its own."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give --config an existing file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: broken YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a configuration: it must hold sections such as images and autoencoder")


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
    try:
        main()
    except UserError as error:
        print(f"error: {error}" if rank == "0" else f"error on process {rank}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except StoppedError as stopped:
        if rank == "0":
            print(f"{stopped}: run the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from what was saved", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    sys.exit(0)
