"""Comparison of the weights of all processes, which must be equal bit for bit, as Karras et al. do in EDM2.

Processes apply the same updates to the same weights. If one of them computes something else, because of a faulty GPU
or memory, or of other hardware or library versions, the model slowly becomes useless without any error.
"""

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.errors import UserError

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def checksum(x: Tensor) -> Tensor:
    """Sum of the bits of all elements, read as integers and weighted with 1, 3, 5, ...: int64 scalar.

    A change of a single element changes it, since odd weights are invertible modulo 2^64, and so do elements that
    change places or that move by the same amount in opposite directions.
    """
    bits = x.detach().view(INTEGERS[x.element_size()]).flatten().long()  # (N,), in the order of the dimensions
    return (bits * torch.arange(1, 2 * len(bits), 2, device=x.device)).sum()


def compare_replicas(step: int, tensors: dict[str, Tensor], accelerator: Accelerator) -> None:
    """Compare the checksums of tensors over all processes.

    Args:
        step: number of updates, for the message.
        tensors: tensors that are equal on all processes, by name; at least one.
        accelerator: all processes call this function together.

    Raises:
        UserError: a tensor differs; on all processes.
    """
    if accelerator.num_processes == 1:
        return
    mine = torch.stack([checksum(x).to(accelerator.device) for x in tensors.values()])
    everyone = accelerator.gather(mine).view(accelerator.num_processes, -1)
    differing = (everyone != everyone[0]).nonzero()
    if len(differing) == 0:
        return
    process, index = differing[0].tolist()
    error = UserError(
        f"step {step}: {list(tensors)[index]} of process {process} differs from that of process 0. Training stops, and "
        "the checkpoints precede this step. Check the memory and the GPU of that process, and that all nodes have the "
        "same hardware and library versions; then run the same command again"
    )
    error.reaches_all = True
    raise error
