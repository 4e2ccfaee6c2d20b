"""report.html: one page that shows a run, from whatever of it is there; it needs nothing else to be opened."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from PIL import Image

from vqvae2.report.plots import Points, plot, points_of
from vqvae2.report.tables import tables
from vqvae2.run.directory import write_atomically
from vqvae2.training.metrics_log import read_metrics

WIDEST = 1600  # pixels of a picture in the page
JPEG_QUALITY = 88
RECONSTRUCTIONS = "Held-out pictures; reconstructions from the coarsest of several levels alone; from all levels."


class Picture(NamedTuple):
    """A picture in the page: its file as a data URL, what stands in its place for who cannot see it, what it shows."""

    source: str
    alternative: str
    caption: str


def write_report(run_dir: Path, evaluation: dict[str, Any] | None = None) -> Path:
    """Write the page of a run.

    Args:
        run_dir: of the run; its curves and pictures are shown as far as they are there.
        evaluation: the content of evaluation.json; None while the run trains, and what was found of former weights no
            longer counts.

    Returns:
        The path of report.html.
    """
    newest = sorted((run_dir / "stage1" / "images").glob("step_*.png"))
    pictures = _evaluation_pictures(run_dir) if evaluation else []
    if newest and not pictures:
        pictures = [
            Picture(
                _picture(newest[-1]),
                "Rows of held-out pictures, of what the coarsest codes alone decode to, and of their reconstructions",
                f"{RECONSTRUCTIONS} ({newest[-1].stem})",
            )
        ]
    environment, configuration = run_dir / "stage1" / "environment.json", run_dir / "config.yaml"
    page = _template().render(
        name=run_dir.resolve().name,
        tables=tables(evaluation) if evaluation else [],
        pictures=pictures,
        curves=_curves(run_dir, evaluation or {}),
        configuration=configuration.read_text() if configuration.exists() else "",
        environment=environment.read_text() if environment.exists() else "",
    )
    path = run_dir / "report.html"
    write_atomically(path, page.encode())
    return path


def _template() -> Any:
    return Environment(loader=PackageLoader("vqvae2.report", "."), autoescape=True, trim_blocks=True).get_template(
        "report.html.j2"
    )


def _curves(run_dir: Path, evaluation: dict[str, Any]) -> list[Picture]:
    """Loss, usage and likelihood over the steps of each stage; precision and recall over the fraction kept."""
    curves = []

    def add(series: dict[str, Points], x: str, y: str, caption: str, logarithmic: bool = False) -> None:
        known = {name: points for name, points in series.items() if points}
        if known:
            last = "; ".join(f"{name} {points[-1][1]:.4g}" for name, points in known.items())
            alternative = f"Curve: {caption} At the end: {last}"
            curves.append(Picture(_data_url(plot(known, x, y, logarithmic), "svg+xml"), alternative, caption))

    lines = read_metrics(run_dir / "stage1" / "metrics.jsonl")
    squared = {
        "training": points_of(lines, "train", "reconstruction"),
        "held out": points_of(lines, "validation", "mse"),
    }
    add(squared, "step", "reconstruction loss", "Stage 1: reconstruction loss, and mean squared error held out.", True)
    for what, of in (("usage", "share of the codes in use"), ("perplexity", "perplexity of the codes")):
        names = sorted({key for line in lines for key in line if key.endswith(f"_{what}")}, reverse=True)
        series = {name.removesuffix(f"_{what}"): points_of(lines, "validation", name) for name in names}
        add(series, "step", what, f"Stage 1: {of}, held out, by level.")
    for directory in [run_dir / "stage3", *sorted((run_dir / "stage4").glob("*"))]:
        lines = read_metrics(directory / "metrics.jsonl")
        series = {
            "training": points_of(lines, "train", "nats_per_code"),
            "held out": points_of(lines, "validation", "nats_per_code"),
        }
        which = "the coarsest level" if directory.name == "stage3" else f"level {directory.name}"
        add(series, "step", "nats per code", f"Negative log-likelihood of the prior of {which}.")
    rows = evaluation.get("rejection") or []
    series = {name: [(row["fraction"], row[name]) for row in rows] for name in ("precision", "recall")}
    add(
        series,
        "fraction kept",
        "share",
        "Samples that the classifier is surest of: precision and recall by the fraction kept.",
    )
    return curves


def _evaluation_pictures(run_dir: Path) -> list[Picture]:
    shown = {
        "reconstructions": (
            "Rows of held-out pictures, of what the coarsest codes alone decode to, and of their reconstructions",
            RECONSTRUCTIONS,
        ),
        "samples": ("A row of sampled pictures for each class", "Samples, a row for each class."),
        "temperatures": (
            "Rows of samples at rising temperatures",
            "The same samples at temperatures 0.7, 0.85, 1 and 1.15, from top to bottom.",
        ),
        "neighbours": (
            "A row of samples above rows of training pictures that resemble them most",
            "Samples (top row) and, below each, the nearest training pictures in the classifier's features: "
            "copies would show here.",
        ),
    }
    directory = run_dir / "evaluation" / "comparison"
    return [
        Picture(_picture(directory / f"{name}.png"), alternative, caption)
        for name, (alternative, caption) in shown.items()
        if (directory / f"{name}.png").exists()
    ]


def _picture(path: Path) -> str:
    """A picture small enough for the page: as it is, or as JPEG where it is large."""
    with Image.open(path) as image:
        image.load()
    if image.width * image.height <= 500_000:
        return _data_url(path.read_bytes(), "png")
    image.thumbnail((WIDEST, 2 * WIDEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return _data_url(file.getvalue(), "jpeg")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
