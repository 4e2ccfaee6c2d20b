"""The Inception network that published distances are measured with, from weights that have to lie ready."""

from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from vqvae2.evaluation.classifier import Seen
from vqvae2.run.directory import sha256

OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
RESIZE = "bilinear to 299x299 as in TensorFlow 1"


def weights_path() -> Path:
    """Where torch-fidelity keeps the weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name


def missing_weights() -> str | None:
    """Why Inception cannot be used, and what to do; None where it can."""
    path = weights_path()
    if not path.exists():
        return f"{path}: not there, so metrics in Inception's features are left out: get it from {URL_INCEPTION_V3}"
    if sha256(path) != OFFICIAL_SHA256:
        return f"{path}: not the official file, so it is not read: delete it and get {URL_INCEPTION_V3}"
    return None


class Inception:
    """Images -> Inception's features (2048) and logits."""

    def __init__(self, device: torch.device):
        """Only where `missing_weights` has nothing to say."""
        layers = ["2048", "logits_unbiased"]
        self.network = FeatureExtractorInceptionV3(
            "inception", layers, feature_extractor_weights_path=str(weights_path())
        ).to(device)

    def __call__(self, images: Tensor) -> Seen:
        """uint8 (B, C, H, W) -> what it sees in them, in float32 as published metrics are: bf16 moves the features."""
        with torch.autocast(images.device.type, enabled=False):
            return Seen(*self.network(images.expand(-1, 3, -1, -1)))
