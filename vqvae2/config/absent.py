"""Values of fields that are absent from a config.yaml or model.json because an earlier version wrote it.

Each new field is listed here with the value that keeps existing runs unchanged. The defaults of the
configuration never apply to existing runs.
"""

from copy import deepcopy
from typing import Any

ABSENT: dict[str, Any] = {  # * matches every level
    "images.background": [255, 255, 255],
    "images.random_resized_crop": None,
    "images.max_unreadable_fraction": 0.0,
    "images.image_column": None,
    "images.label_column": None,
    "autoencoder.activation": "relu",
    "autoencoder.level_dropout": 0.0,
    "stage2.flipped_copies": False,
    "stage2.cropped_copies": 0,
    "priors.*.activation_checkpointing": False,
    "priors.*.right_reach": None,
    "stage1.optimizer": "adam",
    "stage1.start_from": None,
    "stage1.weight_decay": 0.0,
    "stage1.shard_optimizer": False,
    "priors.*.train.optimizer": "adam",
    "priors.*.train.start_from": None,
    "priors.*.train.weight_decay": 0.0,
    "priors.*.train.shard_optimizer": False,
    "train.shard_optimizer": False,
    "train.weight_decay": 0.0,
}


def completed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the recorded sections with every missing field of ABSENT added."""
    whole = deepcopy(record)
    for key, value in ABSENT.items():
        *path, field = key.split(".")
        for section in _sections(whole, path):
            section.setdefault(field, deepcopy(value))
    return whole


def _sections(record: dict[str, Any], path: list[str]) -> list[dict[str, Any]]:
    """Return the dictionaries at `path` in the record."""
    found: list[Any] = [record]
    for name in path:
        inner = [x for x in found if isinstance(x, dict)]
        found = [y for x in inner for y in (x.values() if name == "*" else [x[name]] if name in x else [])]
    return [x for x in found if isinstance(x, dict)]
