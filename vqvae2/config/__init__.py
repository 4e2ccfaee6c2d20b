"""The configuration of a run: its fields, its checks, and the values of fields that earlier versions did not have."""

from vqvae2.config.absent import completed
from vqvae2.config.checks import check, check_parts, local_batch_size
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
    RunConfig,
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
    "RunConfig",
    "Stage2Config",
    "TrainConfig",
    "as_dict",
    "check",
    "check_parts",
    "completed",
    "compression_ratio",
    "level_grids",
    "local_batch_size",
]
