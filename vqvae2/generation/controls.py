"""Validation of the sampling arguments: labels, temperature, top-k, top-p and guidance."""

from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.prior.sampling import Controls
from vqvae2.run.seeding import keyed_generator

UNCONDITIONAL = "none"


class NoClass(Enum):
    """The label of the unconditional model, also of a run with a class that is named "none"."""

    NO_CLASS = "no class"


NO_CLASS = NoClass.NO_CLASS
HIDDEN = -1  # class index for the unconditional model

T = TypeVar("T")
Label = str | int | NoClass | None
ByLevel: TypeAlias = T | dict[str, T]  # one value for all levels, or values by level


def choose_labels(
    label: Label | Sequence[Label],
    indices: Sequence[int],
    seed: int,
    guidance: float,
    classes: list[str],
    frequencies: list[float],
    can_be_hidden: bool,
) -> Tensor | None:
    """Class index of each image, (B,) int64, -1 for the unconditional model; None if the run has no classes.

    Args:
        label: one label for all images, or one for each image. A label is a class name or index, "none" or
            NO_CLASS for the unconditional model, or None for a class drawn at random with the training frequencies.
        indices: image numbers; the class of an image is drawn by (seed, image number).
        seed: seed of the random numbers.
        guidance: scale of classifier-free guidance; 1: no guidance.
        classes: names of the classes.
        frequencies: fraction of the training images in each class.
        can_be_hidden: whether the priors were trained with label dropout.

    Raises:
        UserError: a label or the guidance is not valid for this run.
    """
    wanted = list(label) if isinstance(label, list | tuple) else [cast(Label, label)] * len(indices)
    if len(wanted) != len(indices):
        raise UserError(f"label: {len(wanted)} labels for {len(indices)} images: give one label, or one for each image")
    if not classes:
        if guidance != 1 or any(x not in (None, UNCONDITIONAL, NO_CLASS) for x in wanted):
            raise UserError("label, guidance: this run was trained on images without classes: leave both out")
        return None
    drawn = torch.tensor(frequencies, dtype=torch.float64)
    chosen = [_class_index(x, i, seed, classes, drawn) for x, i in zip(wanted, indices, strict=True)]
    if not can_be_hidden and (guidance != 1 or HIDDEN in chosen):
        raise UserError(
            "label none, guidance: the priors of this run were trained with label_dropout 0: give a class, no guidance"
        )
    return torch.tensor(chosen)


def _class_index(label: Label, image: int, seed: int, classes: list[str], frequencies: Tensor) -> int:
    if label is None:
        uniform = torch.rand((), dtype=torch.float64, generator=keyed_generator(seed, "sample", image, "label"))
        return int((frequencies.cumsum(0) <= uniform * frequencies.sum()).sum())
    if label in classes:
        return classes.index(label)
    if label in (UNCONDITIONAL, NO_CLASS):
        return HIDDEN
    if str(label).isdecimal() and int(label) < len(classes):
        return int(label)
    raise UserError(
        f"label: {label!r} is not a class: use one of {', '.join(classes)}, an index below {len(classes)}, or none"
    )


def controls_of(
    level: str,
    temperature: ByLevel[float],
    top_k: ByLevel[int | None],
    top_p: ByLevel[float | None],
    guidance: float,
) -> Controls:
    """Return the controls of one level.

    Raises:
        UserError: a value is not valid.
    """
    temperature = temperature.get(level, 1.0) if isinstance(temperature, dict) else temperature
    top_k = top_k.get(level) if isinstance(top_k, dict) else top_k
    top_p = top_p.get(level) if isinstance(top_p, dict) else top_p
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature: {temperature!r} is not valid: use a number above 0")
    if top_k is not None:
        at_least("top_k", top_k, 1)
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p: {top_p!r} is not valid: use a number above 0 and at most 1")
    at_least("guidance", guidance, 0)
    return Controls(temperature, top_k, top_p, guidance)


def at_least(name: str, value: float, least: float) -> None:
    """Raise a UserError if `value` is less than `least` or NaN."""
    if not value >= least:
        raise UserError(f"{name}: {value!r} is not valid: use {least} or more")
