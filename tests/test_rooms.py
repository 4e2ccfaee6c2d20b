"""The layering of the package, checked by parsing the imports of every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [  # modules and subpackages, top layer first; each imports only from those after it
    "stages",
    "planning",
    "benchmarks",
    "family",
    "evaluation",
    "report",
    "demo",
    "generation",
    "prior",
    "codes",
    "autoencoder",
    "images",
    "training",
    "run",
    "config",
    "errors",
]
FLOOR_OF = {room: floor for floor, room in enumerate(ORDER)}
FILES = sorted((ROOT / "vqvae2").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """The full names of everything that a file imports, at any place in it."""
    names = set()
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            names |= {f"{start}{node.module or ''}".strip(".") + "." + alias.name for alias in node.names}
    return names


def room(path: Path) -> str:
    """The top-level module or subpackage of vqvae2 that contains `path`."""
    return path.relative_to(ROOT / "vqvae2").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_from_rooms_below(path: Path):
    """No file imports from a higher layer."""
    here = room(path)
    if here == "__init__":
        return
    others = {name.split(".")[1] for name in imported_modules(path) if name.startswith("vqvae2.")} - {here}
    above = {other for other in others if FLOOR_OF.get(other, -1) < FLOOR_OF[here]}
    assert not above


def test_every_room_has_a_floor():
    """Every top-level module and subpackage of vqvae2 has an entry in ORDER."""
    assert {room(path) for path in FILES} - {"__init__"} <= set(FLOOR_OF)


def test_the_imports_are_really_read():
    """`imported_modules` finds a known import; if it found none, the tests above would always pass."""
    assert "vqvae2.config.Config" in imported_modules(ROOT / "vqvae2" / "stages.py")


def test_nobody_imports_the_pipelines():
    """No file of the package imports from pipelines/."""
    imported = {name.split(".")[0] for path in FILES for name in imported_modules(path)}
    assert "torch" in imported and "pipelines" not in imported


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.py")), ids=lambda path: path.name)
def test_pipelines_only_wire(path: Path):
    """Each pipeline script has at most 80 lines."""
    assert len(path.read_text().splitlines()) <= 80
