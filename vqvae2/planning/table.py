"""A text table with a row for each quantity and a column for each stage."""

Column = dict[str, str]  # text by the name of the row; missing ones are left blank


def table(columns: dict[str, Column]) -> str:
    """Format columns, by heading, as text; rows are in the order of their first appearance, numbers to the right."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    cells = [["", *columns], *([name, *(column.get(name, "") for column in columns.values())] for name in names)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in cells
    )


def gib(count: float) -> str:
    """Format bytes as GiB with three significant digits."""
    return short(count / 2**30)


def short(number: float) -> str:
    """Format a number with three significant digits, and whole from 100 on."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
