"""Evaluate a finished run: write evaluation.json, the images of the report, and report.html."""

import json
from pathlib import Path
from typing import Any

from vqvae2.config import Config, as_dict, local_batch_size
from vqvae2.evaluation import inception, metrics, pictures
from vqvae2.evaluation.classifier import Seen, Trained
from vqvae2.evaluation.fidelity import nearest
from vqvae2.evaluation.parts import found, part_dir
from vqvae2.evaluation.pixels import LPIPS_URL, lpips_weights, lpips_weights_are_there
from vqvae2.evaluation.rejection import REAL_CLASSIFIER
from vqvae2.evaluation.subject import Subject, as_image_set
from vqvae2.generation.samples import Written, write_samples
from vqvae2.report.page import write_report
from vqvae2.run.directory import compare_configuration, recorded_configuration, stage_dir, write_atomically
from vqvae2.run.launch import refusals_reach_all, start_accelerator
from vqvae2.run.lock import locked_by_main
from vqvae2.training.window import share_of, validation_window

CONTROLS = ("temperature", "top_p", "guidance")
CLASSIFIER = ("classifier", "classifier_size", "classifier_steps", "batch_size")


def evaluate(config: Config) -> Path:
    """Evaluate a finished run; results of an interrupted evaluation are reused.

    Returns:
        The path of evaluation.json.

    Raises:
        UserError: a stage has not finished, or the images or the seed differ from those of stage 1.
    """
    accelerator = start_accelerator("evaluation", "auto")
    local_batch_size("evaluation.batch_size", config.evaluation.batch_size, accelerator.num_processes)
    stage1 = stage_dir(config.run_dir, 1)
    if former := recorded_configuration(stage1):
        given = {key: as_dict(config)[key] for key in ("images", "seed")}
        compare_configuration(stage1, {**former, **given})
    subject = Subject.open(config, accelerator)
    generator, wanted = subject.generator, config.evaluation
    generator.labels(None, range(wanted.num_samples), config.seed, wanted.guidance)  # fails early if not valid
    path = Path(config.run_dir) / "evaluation.json"
    with locked_by_main(subject.directory, accelerator):
        judged = judge(subject)
        with refusals_reach_all(accelerator):
            if accelerator.is_main_process:
                write_atomically(path, json.dumps(judged, indent=2).encode())
                write_report(Path(config.run_dir), judged)
    return path


def judge(subject: Subject) -> dict[str, Any]:
    """Compute all metrics of evaluation.json; every process returns the same."""
    config, accelerator = subject.config.evaluation, subject.accelerator
    if not lpips_weights_are_there():
        accelerator.print(f"{lpips_weights()}: missing or damaged, LPIPS is skipped: download {LPIPS_URL} to this path")

    judged: dict[str, Any] = {"weights": subject.generator.fingerprint()}
    directory = part_dir(subject.directory, "reconstruction", subject.made_of(), accelerator)
    judged |= found(directory, lambda: metrics.reconstruction(subject), accelerator)
    directory = part_dir(subject.directory, "likelihood", subject.made_of(priors=True), accelerator)
    judged["likelihood"] = found(directory, lambda: metrics.likelihood(subject), accelerator)

    # Sample i does not depend on num_samples, so existing samples are reused when num_samples changes.
    directory = part_dir(subject.directory, "samples", subject.made_of(*CONTROLS, priors=True), accelerator)
    controls = {name: getattr(config, name) for name in CONTROLS} | {"top_k": None}
    written = write_samples(
        subject.generator,
        config.num_samples,
        None,
        controls,
        subject.config.seed,
        config.batch_size,
        accelerator,
        folder=directory,
    )

    classifiers = _classifiers(subject, written) if subject.classes else {}
    made_of = subject.made_of("num_samples", *CONTROLS, *CLASSIFIER, priors=True)
    directory = part_dir(subject.directory, "comparison", made_of, accelerator)
    judged |= found(directory, lambda: compare(subject, written, classifiers, directory), accelerator)
    return judged


def _classifiers(subject: Subject, written: Written) -> dict[str, Trained]:
    """Train one classifier each on real images, on reconstructions and on samples."""
    train, codes = subject.images.train, subject.codes["train"]
    samples = as_image_set(written, subject.classes)
    kinds = {
        "real": (len(train), lambda order: subject.real(train, order), subject.made_of(*CLASSIFIER)),
        "reconstructions": (len(codes), lambda order: subject.decoded("train", order), subject.made_of(*CLASSIFIER)),
        "samples": (
            len(samples),
            lambda order: subject.real(samples, order),
            subject.made_of("num_samples", *CONTROLS, *CLASSIFIER, priors=True),
        ),
    }
    del kinds["real"][2]["autoencoder"]  # real images do not depend on it
    classifiers = {}
    for name, (count, batches, made_of) in kinds.items():
        part = REAL_CLASSIFIER if name == "real" else f"classifier_{name}"
        directory = part_dir(subject.directory, part, made_of, subject.accelerator)
        classifiers[name] = metrics.trained_classifier(subject, name, count, batches, directory)
    return classifiers


def compare(subject: Subject, written: Written, classifiers: dict[str, Trained], directory: Path) -> dict[str, Any]:
    """Compute the sections `fidelity`, `classification_accuracy` and `rejection`; save the images of the report."""
    accelerator = subject.accelerator
    windows = {
        "real": validation_window(len(subject.images.train), subject.config.evaluation.num_samples),
        "held_out": validation_window(len(subject.images.validation), subject.config.evaluation.num_samples),
        "samples": list(range(len(written.paths))),
    }
    sizes = {"height_width": list(subject.trained.height_width)}
    fidelity: dict[str, Any] = {
        "classifier_features": None,
        "inception": None,
        "real": {"split": "train", "images": len(windows["real"]), **sizes},
        "samples": {"images": len(windows["samples"]), **_controls(subject), **sizes},
        "reconstructions": {"split": "validation", "images": len(windows["held_out"]), **sizes},
    }
    accuracies, rejection, neighbours = None, [], None
    if classifiers:
        assert written.labels is not None  # the run has classes
        classifier = classifiers["real"].classifier
        seen = _seen(subject, written, windows, classifier)
        resize = f"bilinear with antialiasing to {classifier.size}x{classifier.size}"
        fidelity["classifier_features"] = {**metrics.distances(**seen), "resize": resize}
        rejection = metrics.rejection(seen["samples"], written.labels, seen["real"])
        neighbours = nearest(seen["samples"].features, seen["real"].features, pictures.NEIGHBOURS)
        accuracies = {name: x.accuracy for name, x in classifiers.items()}
        told = seen["samples"].logits.argmax(1) == written.labels
        accuracies |= {"samples_recognised": told.double().mean().item(), "classes": len(subject.classes)}
    if why := inception.missing_weights():
        accelerator.print(why)
    else:
        seen = _seen(subject, written, windows, inception.Inception(accelerator.device))
        fidelity["inception"] = {**metrics.distances(**seen), "resize": inception.RESIZE}
    with refusals_reach_all(accelerator):
        if accelerator.is_main_process:
            pictures.save_all(subject, written, windows["real"], neighbours, directory)
    return {"fidelity": fidelity, "classification_accuracy": accuracies, "rejection": rejection}


def _controls(subject: Subject) -> dict[str, Any]:
    return {"seed": subject.config.seed, **{name: getattr(subject.config.evaluation, name) for name in CONTROLS}}


def _seen(
    subject: Subject, written: Written, windows: dict[str, list[int]], network: metrics.Network
) -> dict[str, Seen]:
    """Outputs of a network for training images, held-out images and their reconstructions, and samples."""
    sets = {
        "real": (subject.images.train, windows["real"]),
        "held_out": (subject.images.validation, windows["held_out"]),
        "samples": (as_image_set(written, subject.classes), windows["samples"]),
    }
    seen = {}
    for name, (images, window) in sets.items():
        mine = subject.in_order(share_of(window, subject.accelerator))
        seen[name] = metrics.see(subject, network, subject.real(images, mine), len(window))
    window = windows["held_out"]
    mine = subject.in_order(share_of(window, subject.accelerator))
    seen["reconstructions"] = metrics.see(subject, network, subject.decoded("validation", mine), len(window))
    return seen
