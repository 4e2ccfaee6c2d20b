"""Image sets of the `datasets` library: from the Hugging Face Hub, or from a folder with files in its formats."""

import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError, reason_of
from vqvae2.images.names import Names

if TYPE_CHECKING:
    from datasets import Dataset

MOST_LISTED = 20  # configurations in a message
HELD_OUT = ("validation", "test")  # the first of these splits that has labels is used
SAVED = ("dataset_dict.json", "state.json")  # written by save_to_disk of a DatasetDict and of a Dataset
USUAL_LABEL = "label"
ROWS_AT_A_TIME = 1000  # of which the paths are in memory as Python strings
NO_NAME = ""
UNUSABLE = re.compile(r"^$|^/|^\.\.|://")  # not relative to the folder
UNTIDY = re.compile(r"//|(^|/)\.(/|$)|/$")  # what Path removes from a path


@dataclass(frozen=True)
class Rows:
    """The rows of one split of a data set.

    Attributes:
        title: name of the data set and the split, for messages.
        images: the rows with `column` alone, which holds the encoded image or the path of its file.
        column: name of the column of images.
        classes: names of the classes, in the order of the labels; empty if there are no classes.
        labels: class index of each row, -1 if there are no classes.
        names: name of each row: the path of its image relative to the folder, or its index.
    """

    title: str
    images: "Dataset"
    column: str
    classes: list[str]
    labels: "array[int]"
    names: Names

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """The name of a row in messages."""
        return f"{self.title}, row {index} ({self.names[index]})"

    def file(self, index: int) -> bytes | Path:
        """The encoded image of a row, or the path of its file.

        Raises:
            UserError: the row has no image.
        """
        image = self.images[index][self.column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise UserError(f"{self.where(index)}: has no image: remove the row")
        return Path(image["path"]) if image["bytes"] is None else bytes(image["bytes"])


def open_rows(images: ImagesConfig) -> tuple[Rows, Rows | None]:
    """Open the training rows, and the rows that are held out if the data set has a split for them.

    Args:
        images: images section of a configuration with source huggingface, huggingface:NAME or
            huggingface:NAME:CONFIG.

    Raises:
        UserError: the library is not installed, the data set cannot be opened or is empty, or its columns do not
            tell which one has the images or the labels.
    """
    name, parts = _load(images)
    train = _training_split(name, parts)
    if not len(parts[train]):
        raise UserError(f"{name}: split {train} is empty: use another data set")
    image_column, label_column = _image_column(name, parts[train], images), _label_column(name, parts[train], images)
    classes, texts = _texts(name, parts[train], label_column)
    rows = _rows(name, train, parts[train], image_column, classes, texts, images)
    for part in HELD_OUT:
        if part == train or part not in parts or not len(parts[part]):
            continue
        if label_column is not None and label_column not in parts[part].features:
            continue
        texts = _texts(name, parts[part], label_column)[1]
        if label_column is None or any(x is not None for x in texts):
            return rows, _rows(name, part, parts[part], image_column, classes, texts, images)
    return rows, None


def _load(images: ImagesConfig) -> tuple[str, dict[str, "Dataset"]]:
    """The name of the data set, and its splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"images.source: {images.source} needs the package datasets: run pip install 'vqvae2[datasets]', or "
            "pip install 'datasets>=4'"
        ) from error
    name = images.root or images.source.partition(":")[2]
    if images.root and not Path(images.root).is_dir():
        raise UserError(f"{images.root}: no such folder: set images.root to an existing folder")
    try:
        if images.root and any((Path(images.root) / x).is_file() for x in SAVED):
            loaded = datasets.load_from_disk(images.root)
        else:
            loaded = datasets.load_dataset(*_place(images))
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{name}: data set not found on the Hub: check the name; if it is private or gated, accept its conditions "
            "and sign in with `hf auth login`"
        ) from error
    except Exception as error:  # the formats and the connection raise exceptions of many libraries
        _check_configuration(images, name, error)
        raise UserError(f"{name}: cannot be opened as a data set ({reason_of(error)}): {_remedy(images)}") from error
    parts = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
    return name, {part: rows.with_format(None) for part, rows in parts.items()}


def _place(images: ImagesConfig) -> list[str]:
    """The path of the folder, or the name of the repository and that of the configuration if one is given."""
    return [os.path.abspath(images.root)] if images.root else images.source.split(":")[1:]


def _check_configuration(images: ImagesConfig, name: str, error: Exception) -> None:
    """Raise a UserError that lists the configurations of a data set, if the error is about the choice of one."""
    import datasets

    if not isinstance(error, ValueError) or "config" not in str(error).lower():
        return
    path, *given = _place(images)
    try:
        found = datasets.get_dataset_config_names(path)
    except Exception:  # as above; the message then has the text of `error`
        return
    if len(found) < 2 or set(given) & set(found):
        return
    listed = ", ".join(found[:MOST_LISTED]) + (", ..." if len(found) > MOST_LISTED else "")
    remedy = f"set images.source to one, such as huggingface:{path}:{found[0]}"
    if images.root:
        remedy = "set images.root to a folder with the files of one"
    raise UserError(f"{name}: one of its {len(found)} configurations is needed, {listed}: {remedy}") from error


def _remedy(images: ImagesConfig) -> str:
    if images.root:
        return "set images.root to a folder of parquet files, of save_to_disk or of images, with at least one row"
    return "check the network and HF_HUB_OFFLINE, or download it and set images.root to its folder"


def _training_split(name: str, parts: dict[str, "Dataset"]) -> str:
    if "train" in parts or len(parts) == 1:
        return "train" if "train" in parts else next(iter(parts))
    raise UserError(f"{name}: has no split train, only {', '.join(parts) or 'none'}: rename the split of training rows")


def _image_column(name: str, rows: "Dataset", images: ImagesConfig) -> str:
    import datasets

    if images.image_column is not None:
        feature = _feature(name, rows, "image_column", images.image_column)
        encoded = isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()
        binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        if not encoded and not binary and not isinstance(feature, datasets.Image):
            raise UserError(
                f"{name}: images.image_column: column {images.image_column} does not hold images: use another"
            )
        return images.image_column
    found = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if not found:
        columns = ", ".join(rows.column_names)
        raise UserError(
            f"{name}: no column of images (its columns: {columns}): set images.image_column if one has them"
        )
    if len(found) > 1:
        raise UserError(f"{name}: {len(found)} columns of images, {', '.join(found)}: set images.image_column to one")
    return found[0]


def _label_column(name: str, rows: "Dataset", images: ImagesConfig) -> str | None:
    import datasets

    if images.label_column is not None:
        feature = _feature(name, rows, "label_column", images.label_column)
        if not _has_classes(feature):
            raise UserError(
                f"{name}: images.label_column: column {images.label_column} is neither of classes nor of text or "
                "integers: use another column"
            )
        return images.label_column
    found = [column for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) > 1:
        raise UserError(f"{name}: {len(found)} columns of labels, {', '.join(found)}: set images.label_column to one")
    if not found and _has_classes(rows.features.get(USUAL_LABEL)):
        return USUAL_LABEL
    return found[0] if found else None


def _has_classes(feature: Any) -> bool:
    import datasets

    is_value = isinstance(feature, datasets.Value) and feature.dtype.startswith(
        ("string", "large_string", "int", "uint")
    )
    return is_value or isinstance(feature, datasets.ClassLabel)


def _feature(name: str, rows: "Dataset", field: str, column: str) -> Any:
    if column not in rows.features:
        raise UserError(f"{name}: images.{field}: no column {column}: use one of {', '.join(rows.column_names)}")
    return rows.features[column]


def _texts(name: str, rows: "Dataset", column: str | None) -> tuple[list[str], list[Any]]:
    """The names of the classes, sorted unless the column defines their order, and the name of each row or None."""
    import datasets

    if column is None:
        return [], []
    feature = _feature(name, rows, "label_column", column)
    values = rows[column][:]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), [feature.names[x] if x is not None and x >= 0 else None for x in values]
    return [str(x) for x in sorted({x for x in values if x is not None})], [
        None if x is None else str(x) for x in values
    ]


def _rows(
    name: str, part: str, rows: "Dataset", column: str, classes: list[str], texts: list[Any], images: ImagesConfig
) -> Rows:
    import datasets

    _feature(name, rows, "image_column", column)
    if None in texts:
        raise UserError(
            f"{name}: {texts.count(None)} of {len(texts)} rows of split {part} have no label: remove them, or set "
            "images.label_column to another column"
        )
    index = {text: i for i, text in enumerate(classes)}
    if unknown := sorted(set(texts) - set(classes)):
        raise UserError(
            f"{name}: split {part} has labels that split train lacks, such as {unknown[0]}: remove its rows"
        )
    try:
        encoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{name}: images.image_column: column {column} does not hold images ({reason_of(error)}): use another"
        ) from error
    labels = array("i", (index[x] for x in texts) if classes else [-1] * len(rows))
    return Rows(f"{name}, split {part}", encoded, column, classes, labels, _names(encoded, column, images.root))


def _names(rows: "Dataset", column: str, root: str | None) -> Names:
    """The paths of the images relative to `root`, or indices if they have no such paths or not all are distinct."""
    paths = [_relative(x, root) or NO_NAME for x in _paths(rows, column)]
    if not any(map(UNUSABLE.search, paths)) and len(set(paths)) == len(paths):
        return Names.of(Path(x).as_posix() if UNTIDY.search(x) else x for x in paths)
    return Names.of(f"{i:06d}" for i in range(len(paths)))


def _paths(rows: "Dataset", column: str) -> Iterator[str | None]:
    for batch in rows.flatten().with_format(None).select_columns(f"{column}.path").iter(ROWS_AT_A_TIME):
        yield from batch[f"{column}.path"]


def _relative(path: str | None, root: str | None) -> str | None:
    """A path relative to `root` if it is absolute and `root` is given."""
    if root is None or not path or not os.path.isabs(path):
        return path
    start = os.path.join(os.path.abspath(root), "")
    return path.removeprefix(start) if path.startswith(start) else os.path.relpath(path, start)
