"""Counting of floating point operations with the formulas of PyTorch's FLOP counter."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# PyTorch has no formula for the attention kernel of CPUs, and would count its operations as zero.
FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}


class OperationCounter(TorchDispatchMode):
    """Context manager that counts the operations of matrix products, convolutions and attention.

    A multiplication and an addition count as two operations. Causal attention is counted as if every position saw all
    others. PyTorch's FlopCounterMode also adds hooks to all modules, which keep tensors alive that activation
    checkpointing would free.

    Attributes:
        total: number of operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add its number of floating point operations."""
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled() and func.namespace == "aten":
            with self:  # a linear layer, for example, arrives here as a whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result
