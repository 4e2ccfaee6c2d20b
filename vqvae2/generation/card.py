"""The model card (README.md) of a saved model, with the metrics and pictures that its run has left."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vqvae2.generation.description import LIBRARY, Description

TASK = "unconditional-image-generation"
TAGS = ["vq-vae-2", "vq-vae", "pixelcnn", "autoregressive"]
TEMPLATE = Path(__file__).with_name("card.md.j2")
PICTURES = ("samples.png", "reconstructions.png")
EVALUATION, TRAINING = "evaluation.json", "training.yaml"


def exported_files(description: Description) -> set[str]:
    """Names of the files of an export besides config.json and README.md; some of them may be missing."""
    return {*description.sha256, *PICTURES, EVALUATION, TRAINING}


class Origin(NamedTuple):
    """What is known about a trained model besides its weights.

    Attributes:
        dataset: name of the training images; None: unknown.
        license: identifier of the license; None: not stated.
        evaluation: content of evaluation.json; None: not evaluated, or only with other weights.
        pictures: image files, by their name in PICTURES.
        training: configuration of the run as YAML, without folders of the machine; None: unknown.
    """

    dataset: str | None
    license: str | None
    evaluation: dict[str, Any] | None
    pictures: dict[str, Path]
    training: str | None


class Metric(NamedTuple):
    """A metric of the card: identifier, name and value."""

    identifier: str
    name: str
    value: float


def origin_of_run(run_dir: Path, fingerprint: str) -> Origin:
    """Collect the metrics and pictures of a run that belong to the weights with this fingerprint."""
    config = _read(run_dir / "config.yaml")
    comparison = run_dir / "evaluation" / "comparison"
    evaluation = _read(run_dir / EVALUATION)
    compared = _read(comparison / "made_of.json").get("weights")
    current = evaluation.get("weights", compared) == compared == fingerprint  # earlier versions did not write the first
    drawn = sorted((run_dir / "samples").glob(f"grid_seed*_{fingerprint}.png"), key=lambda path: path.stat().st_mtime)
    steps = sorted((run_dir / "stage1" / "images").glob("step_*.png"))
    newest = dict(zip(PICTURES, (drawn[-1:], steps[-1:]), strict=True))
    pictures = {}
    for name in PICTURES:
        evaluated = [comparison / name] if current and (comparison / name).exists() else []
        if paths := evaluated or newest[name]:
            pictures[name] = paths[0]
    evaluated_now = (evaluation or None) if current else None
    return Origin(_dataset(config.get("images")), None, evaluated_now, pictures, _training(config, run_dir))


def origin_of_folder(folder: Path, description: Description) -> Origin:
    """Collect the metrics and pictures in the folder of a saved model; a download has none."""
    pictures = {name: folder / name for name in PICTURES if (folder / name).exists()}
    training = _read_text(folder / TRAINING)
    return Origin(description.dataset, description.license, _read(folder / EVALUATION) or None, pictures, training)


def _read_text(path: Path) -> str | None:
    """Content of a text file; None if it is missing or damaged."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """Content of a YAML or JSON file; empty if it is missing or damaged."""
    try:
        content = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _dataset(images: Any) -> str | None:
    """Name of the training images: a data set, or the last part of their folder's path; None: unknown."""
    if not isinstance(images, dict):
        return None
    source, root = str(images.get("source")), images.get("root")
    if source == "shapes":
        return "synthetic shapes"
    name = source.partition(":")[2] or (Path(str(root)).name if root else "")
    return name or None


def _training(config: dict[str, Any], run_dir: Path) -> str | None:
    """The configuration of a run with the last parts of the paths of its folders only."""
    if not isinstance(config.get("images"), dict):
        return None
    images = dict(config["images"])
    for key in ("root", "validation_root"):
        images[key] = Path(images[key]).name if images.get(key) else None
    shared = deepcopy(config) | {"run_dir": f"runs/{run_dir.resolve().name}", "images": images}
    priors = [x for x in (shared.get("priors") or {}).values() if isinstance(x, dict)]
    for train in (shared.get("stage1"), *(x.get("train") for x in priors)):
        if isinstance(train, dict) and str(train.get("start_from") or "").startswith(("/", ".", "~")):
            train["start_from"] = Path(train["start_from"]).name
    return yaml.safe_dump(shared, sort_keys=False)


def metrics_of(evaluation: dict[str, Any]) -> list[Metric]:
    """The metrics of evaluation.json that the card shows; those that are missing or None are left out."""
    likelihood = evaluation.get("likelihood") or {}
    accuracy = evaluation.get("classification_accuracy") or {}
    reconstruction = evaluation.get("reconstruction") or {}
    inception = (evaluation.get("fidelity") or {}).get("inception") or {}
    rows = [
        ("psnr", "PSNR of reconstructions, dB", reconstruction.get("psnr")),
        ("ssim", "SSIM of reconstructions", reconstruction.get("ssim")),
        ("mse", "MSE of reconstructions, pixels in [-1, 1]", reconstruction.get("mse")),
        *(
            ("nats_per_code", f"NLL of held-out codes, {level}, nats per code", likelihood[level].get("nats_per_code"))
            for level in evaluation.get("codebook") or {}
            if level in likelihood
        ),
        ("bits_per_dimension", "bits per dimension, upper bound", likelihood.get("bits_per_dimension")),
        ("fid", "FID of samples, Inception features", inception.get("fid")),
        ("classification_accuracy_score", "Classification Accuracy Score (CAS)", accuracy.get("samples")),
        ("accuracy", "accuracy of a classifier trained on real images", accuracy.get("real")),
        ("samples_recognised", "samples recognised by that classifier", accuracy.get("samples_recognised")),
    ]
    return [Metric(kind, name, round(x, 5)) for kind, name, x in rows if isinstance(x, int | float)]


def model_card(name: str, description: Description, origin: Origin, precision: str, parameters: int) -> str:
    """The text of README.md.

    Args:
        name: folder or repository, as for `Generator.from_pretrained`.
        description: content of config.json.
        origin: what is known about the model besides its weights.
        precision: precision of the saved priors, for the card.
        parameters: number of parameters of all models.
    """
    metrics = metrics_of(origin.evaluation or {})
    dataset = origin.dataset or "custom"
    results = [EvalResult(TASK, dataset.lower(), dataset, x.identifier, x.value, metric_name=x.name) for x in metrics]
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=TASK,
        license=origin.license,
        tags=TAGS,
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        description=description,
        origin=origin,
        metrics=metrics,
        precision=precision,
        parameters=f"{parameters:,}",
    )
    return str(card) + "\n"
