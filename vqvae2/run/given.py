"""The fields of a configuration that the user sets in the YAML file or with flags, without defaults."""

import re
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from vqvae2.config import Config
from vqvae2.errors import UserError


class Yaml12Loader(yaml.SafeLoader):
    """A YAML 1.2 loader, which reads `no` as a string and 1e-3 as a number; YAML 1.1 reads false and a string."""


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


def load_yaml(text: str) -> Any:
    """Parse YAML 1.2 text."""
    return yaml.load(text, Yaml12Loader)


def read_file(path: Path) -> dict[str, Any]:
    """Read the sections of a configuration file.

    Raises:
        UserError: the file cannot be read, is not valid YAML, or has no sections.
    """
    try:
        content = load_yaml(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): pass an existing file to --config") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a configuration: it must have sections such as images and autoencoder")
    return content


def flag_values(flags: Sequence[str], names: set[str]) -> dict[str, Any]:
    """Return the fields that flags set as nested values: --images.size 64 -> {"images": {"size": 64}}.

    Args:
        flags: command-line arguments.
        names: names of the configuration's sections; flags with other names are skipped.
    """
    given: dict[str, Any] = {}
    for i, flag in enumerate(flags):
        key, equals, value = flag.removeprefix("--").partition("=")
        path = key.split(".")
        if not flag.startswith("--") or path[0] not in names:
            continue
        if not equals:
            value = flags[i + 1] if i + 1 < len(flags) else ""
        given = merged(given, _nested(path, _value(value)))
    return given


def merged(below: Any, above: Any) -> Any:
    """Merge nested values; values of `above` override those of `below`.

    Lists of sections, such as levels, are merged item by item if they have the same length.
    """
    if isinstance(below, dict) and isinstance(above, dict):
        return {key: merged(below.get(key), above[key]) if key in above else below[key] for key in {**below, **above}}
    if _holds_sections(below) and _holds_sections(above) and len(below) == len(above):
        return [merged(x, y) for x, y in zip(below, above, strict=True)]
    return above


def check_names(given: Any, kind: Any = Config, key: str = "", spelt: str = "{}") -> None:
    """Check that all fields are known and that all sections have fields.

    Args:
        given: the value of the file and flags at `key`.
        kind: the expected type of the value.
        key: full name of the value in the configuration.
        spelt: format of a key in messages.

    Raises:
        UserError: a field is unknown, or a value is not a section or list of sections; names the first such field.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        if not isinstance(given, dict):
            raise UserError(f"{spelt.format(key)}: {given!r} is not a section: use fields with values")
        kinds = typing.get_type_hints(kind)
        for name, value in given.items():
            full = f"{key}.{name}" if key else str(name)
            if name not in kinds:
                known = [x.name for x in fields(kind)]
                close = get_close_matches(str(name), known, n=1)
                meant = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
                raise UserError(f"{spelt.format(full)}: unknown field: {meant}")
            check_names(value, kinds[name], full, spelt)
    elif origin is dict and is_dataclass(arguments[1]):
        if not isinstance(given, dict):
            raise UserError(f"{spelt.format(key)}: {given!r} is not a section: use one entry for each level")
        for name, value in given.items():
            check_names(value, arguments[1], f"{key}.{name}", spelt)
    elif origin is list and is_dataclass(arguments[0]):
        if not isinstance(given, list):
            raise UserError(f"{spelt.format(key)}: {given!r} is not a list: use one item for each level")
        for i, value in enumerate(given):
            named = isinstance(value, dict) and isinstance(value.get("name"), str)
            check_names(value, arguments[0], f"{key}[{i}]" + (f" ({value['name']})" if named else ""), spelt)


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, dict) for x in value)


def _nested(path: Sequence[str], value: Any) -> Any:
    return {path[0]: _nested(path[1:], value)} if path else value


def _value(text: str) -> Any:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text
