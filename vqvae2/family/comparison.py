"""Training and evaluation of the models of a comparison -> comparison.json and comparison.html."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vqvae2.config import as_dict, local_batch_size
from vqvae2.evaluation.parts import found, part_dir
from vqvae2.family.config import FamilyConfig
from vqvae2.family.data import open_in_memory
from vqvae2.family.evaluation import Judge, classifier_on, figures_of
from vqvae2.family.page import write_page
from vqvae2.family.training import build_member, finished_models, load_member, model_dir, train_member
from vqvae2.images.image_sets import Splits
from vqvae2.run.directory import write_atomically
from vqvae2.run.launch import refusals_reach_all, start_accelerator
from vqvae2.run.lock import locked_by_main
from vqvae2.run.model_files import read_description


def compare(config: FamilyConfig) -> Path:
    """Train and evaluate models, and write the table and the page; what has been finished is not computed again.

    Args:
        config: the checked configuration; the table also has the models that an earlier call finished.

    Returns:
        The path of comparison.html.
    """
    settings, names = config.train, config.names
    accelerator = start_accelerator(
        "train", settings.mixed_precision, settings.gradient_accumulation_steps, config.trackers, Path(config.run_dir)
    )
    local_batch_size("evaluation.batch_size", config.evaluation.batch_size, accelerator.num_processes)
    finished_models(config)
    accelerator.print("loading images")
    splits = open_in_memory(config)
    for name in names:
        build_member(name, config, splits)  # refuses what a model cannot be built for, before any is trained
    for name in names:
        accelerator.print(f"{name}:")
        train_member(name, config, splits, accelerator)
    evaluation = Path(config.run_dir) / "evaluation"
    with locked_by_main(evaluation, accelerator):
        judge = _judge(config, splits, accelerator) if splits.train.classes else None
        finished = finished_models(config)
        figures = {name: _evaluated(name, config, splits, judge, accelerator) for name in finished}
        with refusals_reach_all(accelerator):
            if accelerator.is_main_process:
                comparison = {"models": figures, "configuration": as_dict(config)}
                path = Path(config.run_dir) / "comparison.json"
                write_atomically(path, json.dumps(comparison, indent=2).encode())
                write_page(config, figures)
    accelerator.end_training()
    accelerator.print(f"{Path(config.run_dir) / 'comparison.html'}")
    return Path(config.run_dir) / "comparison.html"


def _inputs(config: FamilyConfig) -> dict[str, Any]:
    """What the figures of all models depend on."""
    given = as_dict(config)
    inputs = {key: given[key] for key in ("images", "binarise", "seed", "evaluation")}
    for name in ("root", "validation_root", "workers"):
        del inputs["images"][name]
    return inputs


def _judge(config: FamilyConfig, splits: Splits, accelerator: Accelerator) -> Judge:
    """The classifier trained on the training images, whose features the Frechet distances are computed in."""
    directory = part_dir(Path(config.run_dir) / "evaluation", "classifier_real", _inputs(config), accelerator)
    classifier = classifier_on(splits.train, splits, config, directory, accelerator).classifier
    return Judge(classifier, config, splits, accelerator)


def _evaluated(
    name: str, config: FamilyConfig, splits: Splits, judge: Judge | None, accelerator: Accelerator
) -> dict[str, Any]:
    """The figures of a model, computed or read from its folder."""
    description = read_description(model_dir(config, name), "pipelines/compare.py")
    made_of = {
        **_inputs(config),
        "weights": description["sha256"],
        "test_images": config.test_images,
        "likelihood_samples": config.members.likelihood_samples,
    }
    directory = part_dir(Path(config.run_dir) / "evaluation", name, made_of, accelerator)

    def compute() -> dict[str, Any]:
        accelerator.print(f"evaluating {name}")
        member = load_member(name, config, splits).to(accelerator.device)
        with torch.no_grad():
            return figures_of(member, name, config, splits, judge, directory, accelerator)

    return {**found(directory, compute, accelerator), "steps": description["step"]}
