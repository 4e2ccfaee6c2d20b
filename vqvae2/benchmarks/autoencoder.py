"""Speed of the autoencoder compared with its limit: the convolutions without quantizers and codebook updates."""

import itertools
from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.autoencoder.artefact import build_autoencoder
from vqvae2.autoencoder.autoencoder import Autoencoder, as_float
from vqvae2.autoencoder.modules import Modules, module_list
from vqvae2.autoencoder.objective import AutoencoderObjective
from vqvae2.autoencoder.quantiser import Quantised, Quantiser
from vqvae2.benchmarks.report import Row, conditions
from vqvae2.benchmarks.timing import peak_memory_gib, seconds_per_call, update
from vqvae2.config import Config
from vqvae2.images.loading import ImageBatch
from vqvae2.run.launch import start_accelerator
from vqvae2.training.objective import optimiser_of
from vqvae2.training.optimiser import build_optimiser, set_rate


class _Unquantised(nn.Module):
    """Replacement for a quantizer that returns the features unchanged."""

    def forward(self, features: Tensor) -> Quantised:
        return Quantised(features, features, features, features, features)

    def encode(self, features: Tensor) -> Tensor:
        return features

    def look_up(self, codes: Tensor) -> Tensor:
        return codes


def measure_stage1(config: Config, repetitions: int) -> list[Row]:
    """Time a full training step on random images, and a training step of the bare convolutions."""
    accelerator = start_accelerator("stage1", config.stage1.mixed_precision)
    images = _random_images(config, config.stage1.batch_size, accelerator.device)
    step = _training_step(config, images, accelerator)
    step()
    memory = peak_memory_gib(accelerator.device)
    ways = {"training step": step, "bare convolutions": _bare_training_step(config, images, accelerator)}
    return _rows("stage1", ways, config, images, accelerator, repetitions, memory)


def measure_encode(config: Config, repetitions: int) -> list[Row]:
    """Time the encoding of random images to codes, and its convolutions alone."""
    accelerator = start_accelerator("stage2", config.stage2.mixed_precision)
    images = _random_images(config, config.stage2.batch_size, accelerator.device)
    encode = _encoding(_new_autoencoder(config, accelerator), images, accelerator)
    encode()
    memory = peak_memory_gib(accelerator.device)
    ways = {
        "encoding": encode,
        "bare convolutions": _encoding(_bare_autoencoder(config, accelerator), images, accelerator),
    }
    return _rows("encode", ways, config, images, accelerator, repetitions, memory)


def _rows(
    what: str,
    ways: Mapping[str, Callable[[], object]],
    config: Config,
    images: Tensor,
    accelerator: Accelerator,
    repetitions: int,
    memory: float,
) -> list[Row]:
    """Time two `ways`, the implementation and its limit in this order, and return a row for each."""
    seconds = seconds_per_call(ways, accelerator.device, repetitions)
    ours, limit = seconds.values()
    shared = conditions(what, config.images.height_width, len(images), accelerator.mixed_precision, accelerator.device)
    return [
        {**shared, "way": way, "images_per_second": len(images) / seconds[way]} | metrics
        for way, metrics in zip(ways, ({"share_of_limit": limit / ours, "peak_memory_gib": memory}, {}), strict=True)
    ]


def _random_images(config: Config, count: int, device: torch.device) -> Tensor:
    shape = (count, config.images.channels, *config.images.height_width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


def _new_autoencoder(config: Config, accelerator: Accelerator) -> Autoencoder:
    return build_autoencoder(config.autoencoder, config.images.channels, config.seed).to(accelerator.device)


def _bare_autoencoder(config: Config, accelerator: Accelerator) -> Autoencoder:
    autoencoder = _new_autoencoder(config, accelerator)
    autoencoder.quantisers = cast(Modules[Quantiser], module_list(_Unquantised() for _ in autoencoder.names))
    return autoencoder


def _training_step(config: Config, images: Tensor, accelerator: Accelerator) -> Callable[[], None]:
    """The training step of stage 1: loss, backward pass, gradient clipping, update of parameters and codebooks."""
    autoencoder = _new_autoencoder(config, accelerator)
    objective = AutoencoderObjective(autoencoder, len(images), config.stage1.total_steps, config.seed)
    optimiser = optimiser_of(objective, config.stage1.optimizer, precision=accelerator.mixed_precision)
    set_rate(optimiser, config.stage1.learning_rate)
    indices = torch.arange(len(images), device=accelerator.device)
    batch = ImageBatch(images, torch.zeros_like(indices), indices, indices)
    applied = torch.tensor(True, device=accelerator.device)
    steps = itertools.count(objective.start_step)

    def step() -> None:
        now = next(steps)
        with accelerator.autocast():
            loss = objective.loss(autoencoder, batch, now)
        update(loss.total, autoencoder, optimiser)
        objective.end_step(now, applied, lambda tensor: tensor)

    return step


def _bare_training_step(config: Config, images: Tensor, accelerator: Accelerator) -> Callable[[], None]:
    autoencoder = _bare_autoencoder(config, accelerator)
    optimiser = build_optimiser(autoencoder, autoencoder.rate_factors())
    set_rate(optimiser, config.stage1.learning_rate)

    def step() -> None:
        with accelerator.autocast():
            decoded = autoencoder(images).images
            loss = F.mse_loss(decoded, as_float(images, decoded.dtype))
        update(loss, autoencoder, optimiser)

    return step


def _encoding(autoencoder: Autoencoder, images: Tensor, accelerator: Accelerator) -> Callable[[], None]:
    def encode() -> None:
        with torch.inference_mode(), accelerator.autocast():
            autoencoder.encode(images)

    return encode
