"""Plots of the report, as SVG that is readable on a light and on a dark background."""

import io
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

GREY = "#808080"  # axes and text
COLOURS = ("#2a7fbf", "#d9822b", "#3a9a5b", "#a45cc4")
STYLE: "dict[RcKeyType, str | int]" = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "vqvae2",
}

Points = list[tuple[float, float]]


def plot(series: dict[str, Points], x_label: str, y_label: str, logarithmic: bool = False) -> bytes:
    """Plot lines of (x, y) points as an SVG file with a transparent background.

    Args:
        series: points by legend label; lines of at most 20 points get markers.
        x_label: label of the x axis.
        y_label: label of the y axis.
        logarithmic: whether the y axis is logarithmic.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for (name, points), colour in zip(series.items(), COLOURS * len(series), strict=False):
            marker = "o" if len(points) <= 20 else None
            axes.plot(*zip(*points, strict=True), label=name, color=colour, marker=marker, markersize=3, linewidth=1.4)
        axes.set(xlabel=x_label, ylabel=y_label)
        if logarithmic:
            axes.set_yscale("log")
        axes.grid(alpha=0.2)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=GREY)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def points_of(lines: list[dict[str, Any]], split: str, name: str) -> Points:
    """(step, value) pairs of one metric of the split `train` or `validation`."""
    return [(x["step"], x[name]) for x in lines if x["split"] == split and x.get(name) is not None]
