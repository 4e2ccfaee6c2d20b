"""The configuration of a run: its fields, its checks, and the values of fields that earlier versions did not have."""

from vqvae2.config.absent import completed
from vqvae2.config.checks import check, local_batch_size
from vqvae2.config.fields import (
    SAMPLES_AT_A_TIME,
    AutoencoderConfig,
    Config,
    EvaluationConfig,
    ImagesConfig,
    LevelConfig,
    LevelGrid,
    MixedPrecision,
    PriorConfig,
    Stage2Config,
    TrainConfig,
    as_dict,
    compression_ratio,
    level_grids,
)

__all__ = [
    "SAMPLES_AT_A_TIME",
    "AutoencoderConfig",
    "Config",
    "EvaluationConfig",
    "ImagesConfig",
    "LevelConfig",
    "LevelGrid",
    "MixedPrecision",
    "PriorConfig",
    "Stage2Config",
    "TrainConfig",
    "as_dict",
    "check",
    "completed",
    "compression_ratio",
    "level_grids",
    "local_batch_size",
]
