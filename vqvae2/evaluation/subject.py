"""The finished run that is evaluated, with the models, images and codes that its metrics are computed from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from vqvae2.autoencoder.artefact import TrainedAutoencoder, load_autoencoder
from vqvae2.codes.extraction import open_codes
from vqvae2.codes.loading import load_code_batches
from vqvae2.codes.store import CodeStore
from vqvae2.config import Config, as_dict
from vqvae2.evaluation.classifier import LabelledBatch
from vqvae2.generation.generator import Generator
from vqvae2.generation.samples import Written, read_sample
from vqvae2.images.decode import Crop
from vqvae2.images.image_sets import NO_LABEL, ImageSet, Splits
from vqvae2.images.loading import load_batches
from vqvae2.images.survey import open_surveyed
from vqvae2.run.directory import codes_path
from vqvae2.training.order import Item, StepOrder, in_order


@dataclass(frozen=True)
class Subject:
    """A finished run and the accelerator that it is evaluated with.

    Attributes:
        config: configuration of the run; its section `evaluation` holds the settings of the evaluation.
        accelerator: the accelerator.
        trained: the autoencoder exported by stage 1.
        generator: the models of the run, on this process's device.
        images: training and held-out images.
        codes: codes of the images, by the keys `train` and `validation`.
    """

    config: Config
    accelerator: Accelerator
    trained: TrainedAutoencoder
    generator: Generator
    images: Splits
    codes: dict[str, CodeStore]

    @staticmethod
    def open(config: Config, accelerator: Accelerator) -> "Subject":
        """Load a finished run.

        Raises:
            UserError: a stage has not finished.
        """
        trained = load_autoencoder(config.run_dir)
        dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        generator = Generator.from_run(config.run_dir, accelerator.device, dtype)
        generator.fingerprint()  # loads all priors, which fails if one is missing
        codes = {
            part: open_codes(codes_path(config.run_dir, part), trained.sha256, trained.path)
            for part in ("train", "validation")
        }
        return Subject(config, accelerator, trained, generator, open_surveyed(config, accelerator), codes)

    @property
    def directory(self) -> Path:
        """Folder of the parts of the evaluation."""
        return Path(self.config.run_dir) / "evaluation"

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty if the images have no classes."""
        return self.trained.classes

    def made_of(self, *sections: str, priors: bool = False) -> dict[str, Any]:
        """Inputs that metrics depend on, for `part_dir`.

        They are the weights of the autoencoder, the section `images`, the seed, the given fields of the section
        `evaluation`, and with `priors` the weights of all models.
        """
        given = as_dict(self.config)
        made_of = {"autoencoder": self.trained.sha256, "images": given["images"], "seed": given["seed"]}
        for name in ("root", "validation_root", "workers"):  # may change, as when a stage is resumed
            del made_of["images"][name]
        if priors:
            made_of["weights"] = self.generator.fingerprint()
        return made_of | {name: given["evaluation"][name] for name in sections}

    def training_order(self, num_images: int, first_step: int) -> StepOrder:
        """Order in which this process trains a classifier on images, from `first_step` on."""
        return StepOrder(
            num_images,
            self.config.evaluation.batch_size,
            self.config.seed,
            first_step,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )

    def real(self, images: ImageSet, order: Iterable[list[Item]]) -> Iterator[LabelledBatch]:
        """Batches of images without augmentation."""
        for batch in load_batches(images, order, min(self.config.images.workers, 2)):
            yield LabelledBatch(batch.images, batch.labels, batch.batch_indices)

    def decoded(self, part: str, order: Iterable[list[Item]]) -> Iterator[LabelledBatch]:
        """Batches of reconstructions, decoded from the codes of the part `train` or `validation`."""
        for batch in load_code_batches(self.codes[part], order):
            yield LabelledBatch(self.decode(batch.codes), batch.labels, batch.batch_indices)

    @torch.no_grad()
    def decode(self, codes: dict[str, Tensor]) -> Tensor:
        """Decode codes (B, H, W) of all levels or of the coarsest ones to uint8 images (B, C, H, W) on the device."""
        on_device = {name: x.to(self.accelerator.device) for name, x in codes.items()}
        with self.accelerator.autocast():
            return self.generator.autoencoder.decode(on_device)

    def in_order(self, indices: list[int]) -> list[list[Item]]:
        """Batches of the images with the given indices, in this order."""
        return in_order(indices, self.config.evaluation.batch_size)

    def progress(self, what: str, indices: list[int]) -> tqdm:
        """Progress bar over this process's images, shown on the main process only."""
        return tqdm(total=len(indices), desc=what, unit="image", disable=not self.accelerator.is_main_process)


def as_image_set(written: Written, classes: list[str]) -> ImageSet:
    """Make sampled images an ImageSet, from which batches can be loaded."""
    names = [path.name for path in written.paths]
    labels = [NO_LABEL] * len(names) if written.labels is None else written.labels.tolist()
    return ImageSet(classes, labels, names, SampleFiles(written.paths))


@dataclass(frozen=True)
class SampleFiles:
    """Loads sampled images; `crop` is ignored, as they are not augmented."""

    paths: list[Path]

    def __call__(self, index: int, crop: Crop | None = None) -> Tensor:
        return read_sample(self.paths[index])
