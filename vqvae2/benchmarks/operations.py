"""Counting of floating point operations."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# PyTorch's counter has no entry for the attention kernel of CPUs, and would count its operations as zero.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def operation_counter() -> FlopCounterMode:
    """A context manager that counts the operations of matrix products, convolutions and attention.

    A multiplication and an addition count as two operations. Causal attention is counted as if every position saw all
    others.
    """
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
