"""Floating-point precision by device."""

import torch

from vqvae2.config import MixedPrecision
from vqvae2.errors import UserError


def resolve_precision(key: str, wanted: MixedPrecision, device: torch.device) -> str:
    """Return the mixed precision to use on a device: no, bf16 or fp16.

    `auto` is bf16 where the hardware has bf16 instructions, else no.

    Raises:
        UserError: fp16 on a device other than CUDA; `key` names the field.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise UserError(f"{key}: fp16 needs a CUDA GPU, but the device is {device.type}: use auto, bf16 or no")
    if wanted != "auto":
        return wanted
    return "bf16" if has_fast_bf16(device) else "no"


def widest_float(device: torch.device) -> torch.dtype:
    """Return the dtype for sums and metrics: float64, or float32 on devices without float64 (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the GPU or CPU has instructions for bf16 products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return False
