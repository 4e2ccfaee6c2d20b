"""The Inception network used for published FID and KID values. Its weights have to be downloaded beforehand."""

from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from vqvae2.evaluation.classifier import Seen
from vqvae2.run.directory import sha256

OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
RESIZE = "bilinear to 299x299 as in TensorFlow 1"


def weights_path() -> Path:
    """Path where torch-fidelity stores the weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name


def missing_weights() -> str | None:
    """Return a message that says why Inception cannot be used and what to do, or None if it can be used."""
    path = weights_path()
    if not path.exists():
        return f"{path}: missing, Inception metrics are skipped: download {URL_INCEPTION_V3} to this path"
    if sha256(path) != OFFICIAL_SHA256:
        return f"{path}: not the official file, Inception metrics are skipped: replace it by {URL_INCEPTION_V3}"
    return None


class Inception:
    """Feature network: uint8 images (B, C, H, W) -> Inception's features (B, 2048) and logits."""

    def __init__(self, device: torch.device):
        """Load the weights; `missing_weights` has to return None."""
        layers = ["2048", "logits_unbiased"]
        self.network = FeatureExtractorInceptionV3(
            "inception", layers, feature_extractor_weights_path=str(weights_path())
        ).to(device)

    def __call__(self, images: Tensor) -> Seen:
        """Compute features and logits of uint8 images (B, C, H, W) in float32, because bf16 changes the features."""
        with torch.autocast(images.device.type, enabled=False):
            return Seen(*self.network(images.expand(-1, 3, -1, -1)))
