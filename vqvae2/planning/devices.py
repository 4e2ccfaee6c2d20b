"""Peak speed and memory of devices."""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from vqvae2.errors import UserError

USABLE = 0.9  # of a device's memory; the rest is left for the CUDA context, workspaces and fragmentation


class Device(NamedTuple):
    """A device that a run is planned for.

    Attributes:
        memory_gib: memory in GiB.
        bf16: peak of dense bf16 or fp16 matrix products with float32 sums in TFLOP/s; 0: not known.
        float32: peak of float32 matrix products without TF32 in TFLOP/s; 0: not known.
        bandwidth: peak memory bandwidth in GB/s; 0: not known.
        source: where the numbers are from.
    """

    memory_gib: float
    bf16: float
    float32: float
    bandwidth: float
    source: str


GPUS = {
    "h100": Device(80, 989.4, 66.9, 3350, "NVIDIA H100 Tensor Core GPU data sheet, SXM, without sparsity"),
    "h200": Device(141e9 / 2**30, 989.4, 66.9, 4800, "NVIDIA H200 Tensor Core GPU data sheet, SXM, without sparsity"),
    "a100": Device(80, 312, 19.5, 2039, "NVIDIA A100 Tensor Core GPU data sheet, 80GB SXM, without sparsity"),
    "rtx4090": Device(24, 165.2, 82.6, 1008, "NVIDIA Ada GPU Architecture white paper, without sparsity"),
}
NAMES = [*GPUS, "cpu"]
# Parts of names, without spaces, of GPUs that have the name of a listed one, but other peaks, memory or bandwidth.
OTHERS = ("h100pcie", "h100nvl", "h200nvl", "gh200", "rtx4090d")


def device_called(name: str, processes: int = 1) -> Device:
    """The device of a name; for cpu, the share of the usable memory that each of the processes has.

    Raises:
        UserError: the name is unknown.
    """
    if name == "cpu":
        return Device(usable_memory() / 2**30 / processes, 0, 0, 0, "measured on this machine")
    if name not in GPUS:
        raise UserError(f"device: {name!r} is not valid: use one of {', '.join(NAMES)}")
    return GPUS[name]


def usable_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of memory of this machine, or of the container that this process runs in (cgroup v2) if that has less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(memory, int(limit.read_text()))
    except (OSError, ValueError):  # another system, or "max"
        return memory


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_device() -> str:
    """The name of this machine's GPU if one of this name and memory is listed, else cpu, which is printed then."""
    if not torch.cuda.is_available():
        return "cpu"
    gpu = torch.cuda.get_device_properties(0)
    found, memory = gpu.name.lower().replace(" ", ""), gpu.total_memory / 2**30
    for name, device in GPUS.items():
        if name in found and memory > USABLE * device.memory_gib and not any(other in found for other in OTHERS):
            return name
    choices = f"{', '.join(GPUS)} or cpu"
    print(f"{gpu.name} with {memory:.0f} GiB is not listed, so the figures are for the CPU: choose --device {choices}")
    return "cpu"
