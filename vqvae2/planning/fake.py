"""Fake tensors, which have a shape and a size in memory but no content, and the bytes of those that are live."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

M = TypeVar("M", bound=nn.Module)


def without_memory(build: Callable[[], M]) -> M:
    """Build a module on the meta device, where its parameters take no memory."""
    with torch.device("meta"):
        return build()


def replace_tensors(module: nn.Module) -> None:
    """Replace parameters and buffers by new ones on the CPU; inside FakeTensorMode, by fake ones."""
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(_empty_like(p), requires_grad=p.requires_grad))
        for name, x in list(part.named_buffers(recurse=False)):
            setattr(part, name, _empty_like(x))


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="cpu")


class LiveBytes(TorchDispatchMode):
    """Context manager that follows the memory of all tensors that operations return, real or fake.

    Attributes:
        now: bytes of the storages that are live.
        peak: largest value of `now` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add the storages that it allocated."""
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.layout == torch.strided:
                self._add(x.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.seen:
            size = storage.nbytes()
            self.seen[storage] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size
