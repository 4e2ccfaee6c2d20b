"""What the absence of a field means in a config.yaml or model.json that was written before the field existed.

A new field gets the value here with which a run of before it goes on unchanged: defaults never reach old runs.
"""

from copy import deepcopy
from typing import Any

ABSENT: dict[str, Any] = {  # * stands for every level
    "images.background": [255, 255, 255],
    "images.random_resized_crop": None,
    "images.max_unreadable_fraction": 0.0,
    "autoencoder.level_dropout": 0.0,
    "priors.*.activation_checkpointing": False,
}


def completed(record: dict[str, Any]) -> dict[str, Any]:
    """A copy of recorded sections with every absent field of ABSENT added."""
    whole = deepcopy(record)
    for key, value in ABSENT.items():
        *path, field = key.split(".")
        for section in _sections(whole, path):
            section.setdefault(field, deepcopy(value))
    return whole


def _sections(record: dict[str, Any], path: list[str]) -> list[dict[str, Any]]:
    """The dictionaries below `path` that the record holds."""
    found: list[Any] = [record]
    for name in path:
        inner = [x for x in found if isinstance(x, dict)]
        found = [y for x in inner for y in (x.values() if name == "*" else [x[name]] if name in x else [])]
    return [x for x in found if isinstance(x, dict)]
