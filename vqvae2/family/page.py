"""comparison.html: a self-contained page with a row for each model, its pictures, and plots over the steps."""

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader

from vqvae2.config import as_dict
from vqvae2.family.config import FamilyConfig
from vqvae2.family.training import model_dir
from vqvae2.report.page import data_url, picture
from vqvae2.report.plots import plot, points_of
from vqvae2.run.directory import write_atomically
from vqvae2.training.metrics_log import read_metrics


class Column(NamedTuple):
    """A column of the table: key of the figure, heading and meaning."""

    key: str
    heading: str
    meaning: str


COLUMNS = (
    Column("parameters", "parameters", "number of trained or fitted parameters"),
    Column("steps", "steps", "of training"),
    Column(
        "reconstruction_mse",
        "error",
        "mean squared error of reconstructions of held-out pixels in [-1, 1]; of pixelcnn models, of one drawn image",
    ),
    Column("rate", "rate", "nats per image: KL divergence of the posterior from the prior, or -log p(codes)"),
    Column("distortion", "distortion", "nats per image: -log p(x | latents)"),
    Column("bound", "bound", "nats per image: upper bound on -log p(x), importance-weighted where latents are drawn"),
    Column("bits_per_dimension", "bits/dim", "the bound in bits per pixel value"),
    Column("exchange_loss", "exchange", "nats per image lost when the decoder gets the latents of another image"),
    Column("use", "in use", "active units of all, or share of the codes in use by level"),
    Column("fid", "FID", "Frechet distance of samples from training images in the features of a classifier"),
    Column("classification_accuracy", "CAS", "accuracy on held-out images of a classifier trained on samples"),
    Column("samples_recognised", "recognized", "share of samples whose class a classifier of real images tells"),
    Column("seconds", "seconds", "of training"),
)
PICTURES = {
    "train": "Training images above their reconstructions",
    "validation": "Held-out images above their reconstructions",
    "samples": "Samples",
    "groups": "Norms of the weights from each latent (column) to each group of pixels (row), black for no influence",
}
DRAWN = "images drawn given their latents"  # in place of reconstructions, by a causal decoder
CURVES = {"rate": "Rate", "exchange_loss": "Loss by exchanged latents"}
CURVES_AT_ONCE = 4  # lines in a plot


def write_page(config: FamilyConfig, figures: dict[str, dict[str, Any]]) -> None:
    """Write comparison.html from the figures of each model and the pictures in its folder."""
    evaluation = Path(config.run_dir) / "evaluation"
    rows = [(name, [cell(found, column.key) for column in COLUMNS]) for name, found in figures.items()]
    pictures = [
        (
            name,
            [
                (picture(path), text)
                for part, text in captions(name)
                if (path := evaluation / name / f"{part}.png").exists()
            ],
        )
        for name in figures
    ]
    template = Environment(loader=PackageLoader("vqvae2.family", "."), autoescape=True, trim_blocks=True).get_template(
        "comparison.html.j2"
    )
    page = template.render(
        name=Path(config.run_dir).resolve().name,
        columns=COLUMNS,
        rows=rows,
        pictures=pictures,
        curves=_curves(config, list(figures)),
        configuration=yaml.safe_dump(as_dict(config), sort_keys=False),
    )
    write_atomically(Path(config.run_dir) / "comparison.html", page.encode())


def captions(name: str) -> list[tuple[str, str]]:
    """Name of the file and caption of each picture that a model may have."""
    causal = name.startswith("pixelcnn")
    return [(part, text.replace("their reconstructions", DRAWN) if causal else text) for part, text in PICTURES.items()]


def cell(figures: dict[str, Any], key: str) -> str:
    """The text of a figure; empty where the model defines none."""
    if key == "use":
        if figures["active_units"] is not None:
            return f"{figures['active_units']} of {figures['units']}"
        usage = figures["codebook_usage"] or {}
        return ", ".join(f"{level} {found['usage']:.0%}" for level, found in usage.items())
    value = figures.get(key)
    if value is None:
        return ""
    if key in ("classification_accuracy", "samples_recognised"):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else short(value)


def short(value: float) -> str:
    """A number with four digits, or as an integer where it has more."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _curves(config: FamilyConfig, names: list[str]) -> list[tuple[str, str]]:
    """Data URLs and captions of plots over the steps: of the models with a causal decoder, then of the others."""
    logs = {name: read_metrics(model_dir(config, name) / "metrics.jsonl") for name in names}
    causal = [name for name in names if name.startswith("pixelcnn")]
    others = [name for name in names if name not in causal]
    groups = [part[i : i + CURVES_AT_ONCE] for part in (causal, others) for i in range(0, len(part), CURVES_AT_ONCE)]
    curves = []
    for group, (key, label) in product(groups, CURVES.items()):
        series = {name: points_of(logs[name], "validation", key) for name in group}
        # a model without latents has a rate of 0, which a logarithmic axis cannot show
        shown = {name: points for name, points in series.items() if points and (key != "rate" or points[-1][1] > 0)}
        if shown:
            last = ", ".join(f"{name} {short(points[-1][1])}" for name, points in shown.items())
            caption = f"{label} on held-out images over the steps, in nats per image. At the end: {last}."
            curves.append((data_url(plot(shown, "step", f"{label.lower()}, nats", key == "rate"), "svg+xml"), caption))
    return curves
