"""Floating-point precision on devices without float64."""

from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2.autoencoder import likelihood
from vqvae2.images import distances, similarity
from vqvae2.prior import sampling
from vqvae2.run.precision import widest_float


class NoFloat64(TorchDispatchMode):
    """Dispatch mode that fails on operations with a float64 result, like a device without float64."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, function
        return result


def test_devices_without_float64_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """On devices without float64, such as MPS, float32 is used and the results are close."""
    assert widest_float(torch.device("mps")) == torch.float32
    assert widest_float(torch.device("cpu")) == widest_float(torch.device("cuda")) == torch.float64

    def compute() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        images, others = torch.randint(0, 256, (2, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
        logits, uniforms = torch.randn(64, 9, generator=generator), torch.rand(64, generator=generator)
        codes = sampling.sample_categorical(logits, uniforms)
        means = others.float() / 127.5 - 1
        nats = likelihood.pixel_nats(images, means, 0.3)
        return [distances.psnr(images, others), similarity.ssim(images, others), nats, codes]

    expected = compute()
    modules: list[ModuleType] = [distances, likelihood, sampling, similarity]
    for module in modules:
        monkeypatch.setattr(module, "widest_float", lambda device: torch.float32)
    with NoFloat64():
        found = compute()
        highest = sampling.sample_categorical(torch.zeros(1, 4), torch.tensor([1 - 2**-24]))
    assert highest.tolist() == [3]
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-4)
