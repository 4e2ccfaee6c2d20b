"""Trained weights that the training of another model starts from."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vqvae2.errors import UserError
from vqvae2.run.model_files import read_description, read_weights


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Attributes:
        weights: state_dict of the model.
        description: content of its model.json.
        path: its directory, as model.json of the new model names it.
    """

    weights: dict[str, Tensor]
    description: dict[str, Any]
    path: Path

    @property
    def started_from(self) -> dict[str, str]:
        """What the model.json of the new model says about its start."""
        return {"path": str(self.path), "sha256": self.description["sha256"]}


def read_start(directory: Path, made_by: str) -> Start:
    """Read the weights of a finished stage.

    Args:
        directory: directory of the model in its run.
        made_by: command that writes the model, for messages.

    Raises:
        UserError: the stage has not finished, or its files are damaged.
    """
    description = read_description(directory, made_by)
    return Start(read_weights(directory, description, made_by), description, directory)


def start_model(model: nn.Module, start: Start, class_tables: Collection[str] = ()) -> None:
    """Copy the weights of `start` into a model of the same sizes.

    Args:
        model: the new model.
        start: the weights.
        class_tables: names of the parameters with one row per class. They keep their initial values where the number
            of classes differs.

    Raises:
        UserError: a parameter is missing in one of the models, or its shapes differ; the model is unchanged.
    """
    own = model.state_dict()
    for key in sorted(own.keys() | start.weights.keys()):
        rows = 1 if key in class_tables and key in own and key in start.weights else 0
        new, old = (_shape(tensors.get(key)) for tensors in (own, start.weights))
        wide, needed = (_shape(tensors.get(key), rows) for tensors in (own, start.weights))
        if wide != needed and (key not in class_tables or rows):
            remedy = "start from a model of the same sizes"
            raise UserError(f"{start.path}: {key} is {old} there and {new} here: {remedy}")
    fitting = {k: x for k, x in start.weights.items() if k in own and _shape(x) == _shape(own[k])}
    model.load_state_dict(own | fitting)


def _shape(tensor: Tensor | None, skipped: int = 0) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape[skipped:]))
