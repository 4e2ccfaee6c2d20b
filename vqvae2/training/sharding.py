"""Sharding: each process keeps the optimizer state, averages and best weights of some of the parameters.

As in ZeRO's first stage (Rajbhandari et al. 2020, arXiv 1910.02054), every process has all parameters and gradients,
updates its own parameters, and receives the others from the processes that own them. Parameters are never split, so
that optimizers of whole matrices, such as Muon, give the same updates. PyTorch's ZeroRedundancyOptimizer is not used:
it pickles the states to gather them.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

BUCKET_BYTES = 64 * 2**20  # sent at once, so that small tensors do not wait for one another


class Shard(NamedTuple):
    """What one of several processes owns.

    Attributes:
        owners: index of the process that owns a tensor, by name; other tensors are owned by process 0.
        process: index of this process.
        processes: number of processes; 1: nothing is sharded.
    """

    owners: dict[str, int]
    process: int
    processes: int

    def owns(self, name: str) -> bool:
        """Whether this process owns a tensor of the module."""
        return self.owners.get(name, 0) == self.process

    def share_parameters(self, module: nn.Module) -> None:
        """After an update, receive the parameters that other processes have updated."""
        self.share({name: p for name, p in module.named_parameters() if name in self.owners})

    @torch.no_grad()
    def share(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite each tensor with that of its owner. All processes pass tensors of the same names and sizes."""
        if self.processes == 1:
            return
        for owner in range(self.processes):
            for bucket in _buckets(x.detach() for name, x in tensors.items() if self.owners.get(name, 0) == owner):
                flat = torch.cat([x.reshape(-1) for x in bucket])
                dist.broadcast(flat, src=owner)
                if owner != self.process:
                    for x, part in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
                        x.copy_(part.view(x.shape))


WHOLE = Shard({}, 0, 1)


def shard_of(module: nn.Module, shards: bool, accelerator: Accelerator) -> Shard:
    """What this process owns of a module; everything if `shards` is false or there are no other processes."""
    if not shards or accelerator.num_processes == 1:
        return WHOLE
    processes = accelerator.num_processes
    return Shard(owners_of(module, processes), accelerator.process_index, processes)


def owners_of(module: nn.Module, processes: int) -> dict[str, int]:
    """Assign the parameters that require a gradient to processes, the largest first to the one with least."""
    sizes = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    loads = [0] * processes
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Group consecutive tensors of one type, of up to BUCKET_BYTES together or a single larger one."""
    bucket: list[Tensor] = []
    for x in tensors:
        size = sum(y.nbytes for y in bucket)
        if bucket and (x.dtype != bucket[0].dtype or size + x.nbytes > BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(x)
    if bucket:
        yield bucket
