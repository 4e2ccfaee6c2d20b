"""The likelihood of single images under a trained run."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2.autoencoder.artefact import TrainedAutoencoder
from vqvae2.autoencoder.likelihood import pixel_nats
from vqvae2.config import SAMPLES_AT_A_TIME
from vqvae2.prior.likelihood import code_nll
from vqvae2.prior.prior import Prior
from vqvae2.run.precision import widest_float


class ImageLikelihood(NamedTuple):
    """Negative log-likelihood of each image.

    Attributes:
        nats: -log p(codes of the level | coarser codes, label) of all codes of an image in nats, (B,), by level.
        bits_per_dimension: -log2 p(x, codes of x) / (C * H * W), (B,), given the label where there is one. It is an
            upper bound on -log2 p(x) / (C * H * W), because other codes could also give the image. None if the pixel
            variance is not known.
        reason: why `bits_per_dimension` is None; None if it is not.
    """

    nats: dict[str, Tensor]
    bits_per_dimension: Tensor | None
    reason: str | None


def image_likelihood(
    images: Tensor,
    codes: dict[str, Tensor],
    labels: Tensor | None,
    trained: TrainedAutoencoder,
    priors: dict[str, Prior],
    run_dir: Path | None,
    device: torch.device,
) -> ImageLikelihood:
    """Compute the likelihood of images whose codes are known.

    Args:
        images: uint8 (B, C, H, W).
        codes: codes (B, H, W) of each level by name.
        labels: (B,) int64, negative for the unconditional model; None: no classes.
        trained: the autoencoder, on the device.
        priors: the prior of each level by name, on the device.
        run_dir: directory of the run, for the pixel variance of a run of an earlier version; None: no run.
        device: device to compute on.
    """
    variance = trained.pixel_variance or evaluated_variance(run_dir)
    wide = widest_float(device)
    nats: dict[str, list[Tensor]] = {name: [] for name in priors}
    pixels: list[Tensor] = []
    for start in range(0, len(images), SAMPLES_AT_A_TIME):
        part = slice(start, start + SAMPLES_AT_A_TIME)
        here = {name: x[part].to(device) for name, x in codes.items()}
        given = torch.full((len(images[part]),), -1, device=device) if labels is None else labels[part].to(device)
        for name, prior in priors.items():
            nats[name].append(code_nll(prior, prior, here, given).to(wide).sum(dim=(1, 2)).cpu())
        if variance is not None:
            originals = images[part].to(device)
            pixels.append(pixel_nats(originals, trained.module(originals).images, variance).cpu())
    by_level = {name: torch.cat(x) for name, x in nats.items()}
    if variance is None:
        reason = (
            f"{trained.path.parent} is of an earlier version, which did not record the pixel variance: "
            "run pipelines/evaluate.py, or train stage 1 for some more steps (and export a saved model again)"
        )
        return ImageLikelihood(by_level, None, reason)
    dimensions = math.prod(images.shape[1:])
    total = torch.stack([*by_level.values(), torch.cat(pixels)]).sum(0)
    return ImageLikelihood(by_level, total / (math.log(2) * dimensions), None)


def evaluated_variance(run_dir: Path | None) -> float | None:
    """The pixel variance that evaluate.py measured; None if there is no run or it was not evaluated."""
    if run_dir is None:
        return None
    try:
        variance = json.loads((run_dir / "evaluation.json").read_text())["likelihood"]["pixel_variance"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return variance if isinstance(variance, float) else None
