"""Results of the measurements: a text table to print, and a JSON file that results are appended to."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vqvae2.errors import UserError
from vqvae2.run.directory import write_atomically
from vqvae2.run.environment import device_name

Row = dict[str, Any]  # metrics by name; missing metrics are left out


def conditions(what: str, height_width: tuple[int, int], batch_size: int, precision: str, device: torch.device) -> Row:
    """The fields that every row contains: the conditions of the measurement."""
    height, width = height_width
    return {
        "what": what,
        "size": f"{height}x{width}",
        "batch_size": batch_size,
        "precision": precision,
        "device": device_name(device),
    }


def table(rows: list[Row]) -> str:
    """Format rows as a text table with a column for each name that occurs."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(x.ljust(width) for x, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file; an empty list if the file does not exist.

    Raises:
        UserError: the file cannot be read, or is not a JSON list.
    """
    try:
        rows = json.loads(path.read_text()) if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): use another file with --output") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: not a list of measurements: use another file with --output")
    return rows


def append_rows(path: Path, rows: list[Row]) -> None:
    """Append rows, with the current time and PyTorch's version, to the JSON list in a file."""
    when = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__}
    content = json.dumps(read_rows(path) + [{**when, **row} for row in rows], indent=1) + "\n"
    write_atomically(path, content.encode())
