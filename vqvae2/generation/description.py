"""config.json of a saved model, which describes its autoencoder and priors so that they can be rebuilt."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvae2.config import (
    AutoencoderConfig,
    Config,
    ImagesConfig,
    LevelGrid,
    PriorConfig,
    Stage2Config,
    TrainConfig,
    as_dict,
    check,
    completed,
    level_grids,
)
from vqvae2.errors import UserError
from vqvae2.images.decode import WHITE
from vqvae2.run.command_line import parse_record
from vqvae2.run.given import check_names

LIBRARY = "vqvae2"
FORMAT_VERSION = 1
CONFIG = "config.json"
AUTOENCODER = "autoencoder.safetensors"
KINDS: dict[str, type] = dict.fromkeys(("image_size", "background", "classes", "class_frequencies"), list)
KINDS |= dict.fromkeys(("autoencoder", "priors", "sha256"), dict)
TRAINING_FIELDS = ("train", "activation_checkpointing")  # of a prior; they do not change the trained model


@dataclass(frozen=True)
class Description:
    """The content of config.json.

    Attributes:
        library_name: vqvae2.
        format_version: version of the file format.
        dataset: name of the training images; None: unknown.
        license: identifier of the license, such as mit; None: not stated.
        image_size: height and width of the images in pixels.
        channels: channels of the images.
        background: color under transparent pixels of image files, three values from 0 to 255.
        classes: class names of the training images; empty without classes.
        class_frequencies: share of the training images in each class.
        pixel_variance: mean squared error of the reconstructions of training images, of pixels in [-1, 1]; None:
            unknown.
        autoencoder: sizes of the autoencoder.
        priors: sizes of the prior of each level; TRAINING_FIELDS are not written.
        sha256: SHA-256 of the weights file of each model, by file name.
    """

    library_name: str
    format_version: int
    dataset: str | None
    license: str | None
    image_size: list[int]
    channels: int
    background: list[int]
    classes: list[str]
    class_frequencies: list[float]
    pixel_variance: float | None
    autoencoder: AutoencoderConfig
    priors: dict[str, PriorConfig]
    sha256: dict[str, str]

    @property
    def grids(self) -> list[LevelGrid]:
        """Grid of codes of each level, coarsest first."""
        return level_grids(self.autoencoder.levels, (self.image_size[0], self.image_size[1]))

    def of_autoencoder(self) -> dict[str, Any]:
        """The description of the autoencoder, as in the model.json of stage 1."""
        kept = ("image_size", "channels", "background", "classes", "class_frequencies", "pixel_variance")
        whole = as_dict(self)
        return {key: whole[key] for key in kept} | {"model": whole["autoencoder"], "sha256": self.sha256[AUTOENCODER]}

    def of_prior(self, level: str) -> dict[str, Any]:
        """The description of the prior of `level`, as in the model.json of stages 3 and 4."""
        index = [grid.name for grid in self.grids].index(level)
        return {
            "model": self.content()["priors"][level],
            "level": self.grids[index]._asdict(),
            "coarser": [grid._asdict() for grid in self.grids[:index]],
            "classes": self.classes,
            "sha256": self.sha256[prior_file(level)],
        }

    def content(self) -> dict[str, Any]:
        """The fields that config.json contains, as plain dictionaries, lists and values."""
        content = as_dict(self)
        for prior in content["priors"].values():
            for name in TRAINING_FIELDS:
                del prior[name]
        return content


def prior_file(level: str) -> str:
    """Name of the weights file of the prior of `level`."""
    return f"prior_{level}.safetensors"


def is_prior_file(name: str) -> bool:
    """Whether a file has the name of a prior's weights."""
    return name.startswith(prior_file("").removesuffix(".safetensors")) and name.endswith(".safetensors")


def read_config(path: Path) -> Description:
    """Read and check a config.json. A field that is unknown, missing or not valid is refused.

    Raises:
        UserError: the file does not describe a model that this version can rebuild.
    """
    content = _read_json(path)
    if content.get("library_name") != LIBRARY:
        raise UserError(
            f"{path}: not a model of {LIBRARY} (library_name is {content.get('library_name')!r}): "
            "use a folder or repository that save_pretrained or push_to_hub has written"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version {content.get('format_version')!r} is not supported, only {FORMAT_VERSION}: "
            f"update {LIBRARY}, or export the model again"
        )
    try:
        _check_kinds(content)
        _check_names(content)
        content = completed({"background": list(WHITE)} | content)  # which earlier versions did not write
        description = parse_record(Description, content)
        if missing := _missing(description.content(), content):
            raise UserError(f"{missing}: missing field: export the model again")
        _check_values(description)
    except UserError as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    return description


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): use a folder with a saved model") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}): export or download the model again") from error
    return content if isinstance(content, dict) else {}


def _check_kinds(content: dict[str, Any]) -> None:
    """Refuse a text where a list or an object belongs, which would be parsed as YAML."""
    for name, kind in KINDS.items():
        if name in content and not isinstance(content[name], kind):
            raise UserError(f"{name}: {content[name]!r} is not valid: use {'a list' if kind is list else 'an object'}")


def _check_names(content: dict[str, Any]) -> None:
    """Refuse unknown fields, with a hint, because a newer version may have written them."""
    try:
        check_names(content, Description)
        priors: dict[str, dict[str, Any]] = content.get("priors", {})
        unknown = [f"priors.{x}.{name}" for x, prior in priors.items() for name in TRAINING_FIELDS if name in prior]
        if unknown:
            raise UserError(f"{unknown[0]}: unknown field")
    except UserError as error:
        raise UserError(f"{error} (if a newer version of {LIBRARY} has written the file: update {LIBRARY})") from error


def _missing(expected: Any, given: Any, key: str = "") -> str | None:
    """Full name of the first field of `expected` that is not in `given`."""
    if isinstance(expected, list):
        pairs = [(f"{key}[{i}]", x, given[i]) for i, x in enumerate(expected)]
    elif isinstance(expected, dict):
        for name in expected:
            if name not in given:
                return f"{key}.{name}".lstrip(".")
        pairs = [(f"{key}.{name}", x, given[name]) for name, x in expected.items()]
    else:
        return None
    return next((found for pair in pairs if (found := _missing(pair[1], pair[2], pair[0].lstrip(".")))), None)


def _check_values(description: Description) -> None:
    """Apply the checks of a run's configuration, and check classes and files."""
    images = ImagesConfig(size=description.image_size, channels=description.channels, background=description.background)
    train = TrainConfig()
    check(Config("unused", images, description.autoencoder, train, Stage2Config(), description.priors))
    frequencies = description.class_frequencies
    if len(frequencies) != len(description.classes) or not all(0 <= x < math.inf for x in frequencies):
        raise UserError(f"class_frequencies: {frequencies} is not valid: use a number, 0 or more, for each class")
    variance = description.pixel_variance
    if variance is not None and not 0 < variance < math.inf:
        raise UserError(f"pixel_variance: {variance!r} is not valid: use a finite number above 0, or null")
    files = {AUTOENCODER, *map(prior_file, description.priors)}
    if set(description.sha256) != files:
        raise UserError(f"sha256: {sorted(description.sha256)} is not valid: use {sorted(files)}")
