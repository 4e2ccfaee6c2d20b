"""nn.ModuleList and nn.ModuleDict of modules of one type, with this type for type checkers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)


class Modules(Protocol[M_co]):
    """An nn.ModuleList whose modules have type M_co."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[M_co]: ...

    def __getitem__(self, index: int, /) -> M_co: ...


class NamedModules(Protocol[M_co]):
    """An nn.ModuleDict whose modules have type M_co."""

    def __len__(self) -> int: ...

    def __contains__(self, name: str, /) -> bool: ...

    def __getitem__(self, name: str, /) -> M_co: ...

    def items(self) -> Iterable[tuple[str, M_co]]: ...

    def values(self) -> Iterable[M_co]: ...


def module_list(modules: Iterable[M]) -> Modules[M]:
    """Return nn.ModuleList(modules)."""
    return cast(Modules[M], nn.ModuleList(modules))


def module_dict(modules: Mapping[str, M]) -> NamedModules[M]:
    """Return nn.ModuleDict(modules)."""
    return cast(NamedModules[M], nn.ModuleDict(modules))
