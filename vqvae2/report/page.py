"""report.html: a self-contained page about a run, built from the files that exist so far."""

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

WIDEST = 1600  # maximum width of an image in the page, in pixels
JPEG_QUALITY = 88
RECONSTRUCTIONS = "Rows: held-out images; with several levels, reconstructions from the coarsest only; from all levels."


class Picture(NamedTuple):
    """An image in the page: data URL, alt text and caption."""

    source: str
    alternative: str
    caption: str


def write_report(run_dir: Path, evaluation: dict[str, Any] | None = None) -> Path:
    """Write the report of a run.

    Args:
        run_dir: directory of the run; curves and images whose files are missing are left out.
        evaluation: the content of evaluation.json; None while the run trains, because the results of an earlier
            evaluation are outdated then.

    Returns:
        The path of report.html.
    """
    newest = sorted((run_dir / "stage1" / "images").glob("step_*.png"))
    pictures = _evaluation_pictures(run_dir) if evaluation else []
    if newest and not pictures:
        pictures = [
            Picture(
                picture(newest[-1]),
                "Rows of held-out images, reconstructions from the coarsest codes only, and from all codes",
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
    """Plots of loss, usage and NLL by step for each stage, and of precision and recall by the fraction kept."""
    curves = []

    def add(series: dict[str, Points], x: str, y: str, caption: str, logarithmic: bool = False) -> None:
        known = {name: points for name, points in series.items() if points}
        if known:
            last = "; ".join(f"{name} {points[-1][1]:.4g}" for name, points in known.items())
            alternative = f"Plot: {caption} Last values: {last}"
            curves.append(Picture(data_url(plot(known, x, y, logarithmic), "svg+xml"), alternative, caption))

    lines = read_metrics(run_dir / "stage1" / "metrics.jsonl")
    squared = {
        "training": points_of(lines, "train", "reconstruction"),
        "held out": points_of(lines, "validation", "mse"),
    }
    add(
        squared,
        "step",
        "reconstruction loss",
        "Stage 1: reconstruction loss in training, MSE on held-out images.",
        True,
    )
    for what, of in (("usage", "fraction of codes in use"), ("perplexity", "perplexity of the codes")):
        names = sorted({key for line in lines for key in line if key.endswith(f"_{what}")}, reverse=True)
        series = {name.removesuffix(f"_{what}"): points_of(lines, "validation", name) for name in names}
        add(series, "step", what, f"Stage 1: {of} on held-out images, by level.")
    for directory in [run_dir / "stage3", *sorted((run_dir / "stage4").glob("*"))]:
        lines = read_metrics(directory / "metrics.jsonl")
        series = {
            "training": points_of(lines, "train", "nats_per_code"),
            "held out": points_of(lines, "validation", "nats_per_code"),
        }
        which = "the coarsest level" if directory.name == "stage3" else f"level {directory.name}"
        add(series, "step", "nats per code", f"Negative log-likelihood of the codes under the prior of {which}.")
    rows = evaluation.get("rejection") or []
    series = {name: [(row["fraction"], row[name]) for row in rows] for name in ("precision", "recall")}
    add(
        series,
        "fraction kept",
        "precision, recall",
        "Rejection sampling: precision and recall by the fraction of samples kept.",
    )
    return curves


def _evaluation_pictures(run_dir: Path) -> list[Picture]:
    shown = {
        "reconstructions": (
            "Rows of held-out images, reconstructions from the coarsest codes only, and from all codes",
            RECONSTRUCTIONS,
        ),
        "samples": ("A row of samples for each class", "Samples, one row for each class."),
        "temperatures": (
            "Rows of samples at increasing temperatures",
            "Samples from the same random numbers at temperatures 0.7, 0.85, 1 and 1.15, from top to bottom.",
        ),
        "neighbours": (
            "A row of samples above rows of their nearest training images",
            "Samples (top row) and, below each sample, the nearest training images in the feature space of the "
            "classifier. A sample that copies a training image would look the same as the image below it.",
        ),
    }
    directory = run_dir / "evaluation" / "comparison"
    return [
        Picture(picture(directory / f"{name}.png"), alternative, caption)
        for name, (alternative, caption) in shown.items()
        if (directory / f"{name}.png").exists()
    ]


def picture(path: Path) -> str:
    """Data URL of an image file: unchanged if small, else downscaled and converted to JPEG."""
    with Image.open(path) as image:
        image.load()
    if image.width * image.height <= 500_000:
        return data_url(path.read_bytes(), "png")
    image.thumbnail((WIDEST, 2 * WIDEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return data_url(file.getvalue(), "jpeg")


def data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
