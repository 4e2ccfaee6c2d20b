"""The interface to a trained run: sample new images, encode images to codes, decode codes to images."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.autoencoder.artefact import TrainedAutoencoder, load_autoencoder
from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.config import SAMPLES_AT_A_TIME
from vqvae2.errors import UserError
from vqvae2.generation import hub
from vqvae2.generation.batches import CodesSoFar, sample_batch
from vqvae2.generation.card import origin_of_folder, origin_of_run
from vqvae2.generation.controls import NO_CLASS, ByLevel, Label, at_least, choose_labels, controls_of
from vqvae2.generation.likelihood import ImageLikelihood, evaluated_variance, image_likelihood
from vqvae2.generation.pretrained import SavedModels, check_target, load_models, save_models
from vqvae2.generation.reconstruction import Reconstructions, measured
from vqvae2.images.decode import read_image
from vqvae2.images.masks import fill
from vqvae2.prior.artefact import TrainedPrior, load_prior
from vqvae2.prior.kept import Kept, keep_coarser, keep_region, region_mask
from vqvae2.prior.prior import Prior
from vqvae2.run.directory import expanded
from vqvae2.run.precision import has_fast_bf16

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _device_and_dtype(device: str | torch.device | None, dtype: str | torch.dtype) -> tuple[torch.device, torch.dtype]:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype == "auto":
        dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise UserError(f"dtype: {dtype!r} is not valid: use auto, float32 or bfloat16")
    return device, chosen


def _saved_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    chosen = torch.float32 if dtype is None else DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise UserError(f"dtype: {dtype!r} is not valid: use float32 or bfloat16")
    return chosen


class Generator:
    """A trained autoencoder and its priors. Create it with `from_run` or `from_pretrained`."""

    def __init__(
        self,
        trained: TrainedAutoencoder,
        load_priors: Callable[[], dict[str, TrainedPrior]],
        device: torch.device,
        dtype: torch.dtype,
        run_dir: Path | None = None,
        saved: SavedModels | None = None,
    ):
        """Not called directly: use `from_run` or `from_pretrained`.

        Args:
            trained: the autoencoder.
            load_priors: loads the prior of each level; called when the priors are first used.
            device: device to compute on.
            dtype: precision to compute in.
            run_dir: directory of the run; None: the models are not those of a run.
            saved: the saved models; None: the models are those of a run.
        """
        self.run_dir = run_dir
        self.device = device
        self.dtype = dtype
        self._trained = trained
        self._load_priors = load_priors
        self._saved = saved
        self.autoencoder: Autoencoder = trained.module.to(device)

    @staticmethod
    def from_run(
        run_dir: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
    ) -> "Generator":
        """Load a run.

        Args:
            run_dir: directory of a run whose stage 1 has finished; `sample` requires all stages.
            device: device to compute on; None: the GPU if there is one, else the CPU.
            dtype: auto (bfloat16 if the hardware supports it natively, else float32), float32 or bfloat16.

        Raises:
            UserError: stage 1 has not finished, or its files are damaged.
        """
        run_dir, (device, dtype) = Path(run_dir), _device_and_dtype(device, dtype)
        trained = load_autoencoder(run_dir)

        def load_priors() -> dict[str, TrainedPrior]:
            return {grid.name: load_prior(run_dir, grid.name, trained) for grid in trained.grids}

        return Generator(trained, load_priors, device, dtype, run_dir=run_dir)

    @staticmethod
    def from_pretrained(
        name: str | Path,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
    ) -> "Generator":
        """Load models that `save_pretrained` or `push_to_hub` has written, or that are part of the package.

        Nothing is unpickled, and the SHA-256 of every weights file is checked.

        Args:
            name: a bundled model such as mnist, else an existing folder, else a repository USER/NAME. Write ./NAME for
                a folder with the name of a bundled model; a Path is always a folder.
            revision: branch, tag or commit of a repository; None: its default branch.
            token: access token for a private repository; None: that of `hf auth login` or HF_TOKEN.
            cache_dir: folder for downloads; None: that of huggingface_hub.
            local_files_only: whether to use the cache only, without network access.
            device: device to compute on; None: the GPU if there is one, else the CPU.
            dtype: auto (bfloat16 if the hardware supports it natively, else float32), float32 or bfloat16.

        Raises:
            UserError: the models cannot be found or downloaded, or a file is damaged or not supported.
        """
        device, dtype = _device_and_dtype(device, dtype)
        options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        saved = load_models(name, revision, **options)
        return Generator(saved.autoencoder, lambda: saved.priors, device, dtype, saved=saved)

    def save_pretrained(
        self, folder: str | Path, dtype: str | torch.dtype | None = None, license: str | None = None
    ) -> None:
        """Save the models with a model card to a folder, which `from_pretrained` loads. All stages must have finished.

        Models that were downloaded are saved without the evaluation, pictures and training.yaml of their repository.

        Args:
            folder: a new or empty folder, or one with an earlier export, which is replaced.
            dtype: precision of the saved priors, float32 or bfloat16; None: float32. The autoencoder is never rounded.
                Samples in bfloat16 are the same for either, those in float32 differ by the rounding of the weights.
            license: identifier of the license, such as mit, for the card.

        Raises:
            UserError: a stage has not finished, the folder has other files, or a file cannot be written.
        """
        self._save(expanded(folder), dtype, license, None)

    def push_to_hub(
        self,
        repository: str,
        private: bool = False,
        token: str | None = None,
        dtype: str | torch.dtype | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the models with a model card to the Hugging Face Hub, and return the address of the repository.

        Models that were downloaded are uploaded without the evaluation, pictures and training.yaml of their repository.

        Args:
            repository: USER/NAME; it is created if it does not exist. An earlier export in it is replaced, README.md
                as well.
            private: whether a repository that is created is private; a public one is refused then.
            token: access token; None: that of `hf auth login` or HF_TOKEN.
            dtype: precision of the saved priors, as for `save_pretrained`.
            license: identifier of the license, such as mit, for the card.

        Raises:
            UserError: a stage has not finished, the repository has other files than an earlier export, or the files
                cannot be uploaded.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), dtype, license, repository)  # fails before a repository is created
            address = hub.create_repository(repository, private, token)
            hub.upload(Path(folder), repository, token)
        return address

    def _save(self, folder: Path, dtype: str | torch.dtype | None, license: str | None, name: str | None) -> None:
        chosen = _saved_dtype(dtype)
        check_target(folder)
        if self._saved is not None:
            origin = origin_of_folder(self._saved.folder, self._saved.description)
        else:
            assert self.run_dir is not None
            origin = origin_of_run(self.run_dir, self.fingerprint())
        origin = origin._replace(license=license or origin.license)
        save_models(folder, self._trained, self.priors, self.pixel_variance, origin, chosen, name)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their indices."""
        return self._trained.classes

    @property
    def height_width(self) -> tuple[int, int]:
        """Size of the images in pixels."""
        return self._trained.height_width

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self._trained.channels

    @property
    def background(self) -> tuple[int, int, int]:
        """Color under transparent pixels of image files, three values from 0 to 255."""
        return self._trained.background

    @property
    def pixel_variance(self) -> float | None:
        """Mean squared error of the reconstructions of training images, of pixels in [-1, 1]; None: unknown."""
        return self._trained.pixel_variance or evaluated_variance(self.run_dir)

    @property
    def priors(self) -> dict[str, Prior]:
        """The prior of each level, in float32: prior(codes, coarser, labels) -> logits (B, K, H, W).

        Raises:
            UserError: the prior of a level is not trained, or was trained on the codes of another autoencoder.
        """
        return {name: prior.module for name, prior in self._priors.items()}

    @cached_property
    def reason_without_priors(self) -> str | None:
        """Why the priors cannot be used; None if they can. It is decided once, because loading them takes time."""
        try:
            self.fingerprint()  # loads all priors
        except UserError as error:
            return str(error)
        return None

    @property
    def has_unconditional_model(self) -> bool:
        """Whether the priors can be used without a label: without classes, or after training with label dropout.

        Raises:
            UserError: a prior is missing.
        """
        return not self.classes or all(prior.config.label_dropout > 0 for prior in self.priors.values())

    def fingerprint(self, priors: bool = True) -> str:
        """Hash of the weights of all models, or of the autoencoder alone, eight hexadecimal digits."""
        digests = [self._trained.sha256] + ([x.sha256 for x in self._priors.values()] if priors else [])
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:8]

    @cached_property
    def _priors(self) -> dict[str, TrainedPrior]:
        priors = self._load_priors()
        for prior in priors.values():
            prior.module.to(self.device)
        return priors

    @cached_property
    def _sampling_priors(self) -> dict[str, Prior]:
        """The priors in the precision used for sampling."""
        return {
            name: x if self.dtype == torch.float32 else deepcopy(x).to(self.dtype) for name, x in self.priors.items()
        }

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Encode uint8 images (B, C, H, W) to the codes of each level, (B, H / stride, W / stride) int64.

        Raises:
            UserError: dtype or shape of the images do not match the run.
        """
        height, width = self._trained.height_width
        expected = (self._trained.channels, height, width)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise UserError(
                f"images: {tuple(images.shape)} {images.dtype} is not valid: "
                f"use uint8 of shape (B, {', '.join(map(str, expected))})"
            )
        with self._autocast():
            parts = [self.autoencoder.encode(x.to(self.device)) for x in images.split(SAMPLES_AT_A_TIME)]
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in self.autoencoder.names}

    @torch.no_grad()
    def decode(self, codes: dict[str, Tensor]) -> Tensor:
        """Decode the codes of all levels, as returned by `encode`, to uint8 images (B, C, H, W).

        A negative code is not known: its position receives the mean vector of the level's codebook.

        Raises:
            UserError: the codes of a level are missing.
        """
        missing = [name for name in self.autoencoder.names if name not in codes]
        if missing:
            raise UserError(
                f"codes: the levels {missing} are missing: give the codes of all levels, {self.autoencoder.names}"
            )
        return self._decode(codes)

    def _decode(self, codes: dict[str, Tensor]) -> Tensor:
        """Decode the codes of all levels or of the coarsest ones to uint8 images (B, C, H, W)."""
        count = len(codes[self.autoencoder.names[0]])
        with self._autocast():
            parts = [
                self.autoencoder.decode(
                    {name: x[i : i + SAMPLES_AT_A_TIME].to(self.device) for name, x in codes.items()}
                ).cpu()
                for i in range(0, count, SAMPLES_AT_A_TIME)
            ]
        return torch.cat(parts)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, labels: Sequence[Label] | Tensor | None = None) -> Reconstructions:
        """Encode and decode images, and measure each: errors, likelihood and size of its codes.

        The likelihood is None, with the reason, if a prior was not trained when the priors were first needed.

        Args:
            images: uint8 (B, C, H, W).
            labels: as for `log_likelihood`.

        Raises:
            UserError: images or labels do not match the run; see `log_likelihood`.
        """
        codes = self.encode(images)
        coarsest = self.autoencoder.names[0]
        likelihood, reason = None, self.reason_without_priors
        if reason is None:
            likelihood = self.log_likelihood(images, labels)
            reason = likelihood.reason
        return measured(
            images.cpu(), self._decode(codes), self._decode({coarsest: codes[coarsest]}), likelihood, reason
        )

    def sample(
        self,
        num_images: int,
        label: Label | Sequence[Label] = None,
        temperature: ByLevel[float] = 1.0,
        top_k: ByLevel[int | None] = None,
        top_p: ByLevel[float | None] = None,
        guidance: float = 1.0,
        seed: int = 0,
        first_image: int = 0,
        batch_size: int = SAMPLES_AT_A_TIME,
        kept: dict[str, Kept] | None = None,
        particles: int = 1,
        progress: Callable[[int], object] = lambda codes: None,
        survival: Callable[[Tensor], object] = lambda shares: None,
        watch: Callable[[Callable[[], Tensor]], object] = lambda images_so_far: None,
    ) -> Tensor:
        """Sample new images: uint8 (num_images, C, H, W).

        Image i depends only on (seed, i) and the other arguments, not on the number of images.

        Args:
            num_images: number of images.
            label: a class name or index, for all images or one for each; "none": the unconditional model; None: the
                class of each image is drawn at random with the training frequencies.
            temperature: divides the logits, above 0; values below 1 give more probable, less varied images.
                temperature, top_k and top_p may be dictionaries by level.
            top_k: sample each code from the k most probable codes; None: from all.
            top_p: sample each code from the smallest set of most probable codes with at least this total probability;
                None: from all.
            guidance: scale of classifier-free guidance; 1: none; larger values follow the label more closely.
            seed: seed of the random numbers.
            first_image: number of the first image.
            batch_size: images times particles sampled at a time; the last batch is padded with images that are
                discarded.
            kept: codes that are kept instead of sampled, by level; see `complete` and `resample`.
            particles: number of particles per image; see `complete`.
            progress: called with the number of codes sampled for the batch since the last call.
            survival: called for each batch with the share of each image's first particles that have descendants at the
                end, (B,), if there are several particles.
            watch: called at every step of the sampler with a function that decodes the codes so far to uint8 images
                (B, C, H, W) of the batch, padding included; of several particles, the first one is shown. It must be
                called before `watch` returns. An exception of `watch` ends the sampling.

        Raises:
            UserError: a stage has not finished, or an argument is not valid for this run.
        """
        at_least("num_images", num_images, 1)
        at_least("batch_size", batch_size, 1)
        at_least("seed", seed, 0)
        at_least("particles", particles, 1)
        at_a_time = max(1, batch_size // particles)
        indices = range(first_image, first_image + num_images)
        labels = self.labels(label, indices, seed, guidance)
        controls = {name: controls_of(name, temperature, top_k, top_p, guidance) for name in self.autoencoder.names}

        def show(codes_so_far: CodesSoFar) -> None:
            watch(lambda: self._decode(codes_so_far()))

        images = []
        for start in range(0, num_images, at_a_time):
            part = [indices[min(start + i, num_images - 1)] for i in range(at_a_time)]
            part_labels = None if labels is None else labels[[i - first_image for i in part]].to(self.device)
            part_kept = {
                name: x if len(x.codes) == 1 else x._replace(codes=x.codes[[i - first_image for i in part]])
                for name, x in (kept or {}).items()
            }
            codes, shares = sample_batch(
                self._sampling_priors,
                part,
                part_labels,
                controls,
                part_kept,
                seed,
                particles,
                self.device,
                progress,
                show,
            )
            images.append(self.decode(codes)[: num_images - start])
            if shares is not None:
                survival(shares[: num_images - start])
        return torch.cat(images)

    def complete(self, images: Tensor, keep: str | Tensor, particles: int = 1, **options: Any) -> Tensor:
        """Keep a region of each image and sample the rest: uint8 (B, C, H, W) -> uint8 (B, C, H, W).

        With one particle, codes are sampled in their order, and those before a kept code are sampled without knowledge
        of it. With several, each image is sampled as weighted particles (sequential Monte Carlo), and the result is
        conditioned on all kept codes, the better the more particles there are.

        Args:
            images: uint8 (B, C, H, W); the random numbers of image i depend on (seed, i).
            keep: the half to keep (top, bottom, left or right), a box LEFT,UPPER,RIGHT,LOWER in pixels, or a mask, bool
                (H, W), true where the images are kept. The rest is filled from its surroundings before encoding.
            particles: number of particles per image, 1 or more; `batch_size` counts images times particles.
            **options: label, temperature, top_k, top_p, guidance, seed, batch_size, progress, survival and watch of
                `sample`.

        Raises:
            UserError: an argument is not valid.
        """
        return self.sample(len(images), kept=self.kept_region(images, keep), particles=particles, **options)

    def resample(self, images: Tensor, level: str = "bottom", **options: Any) -> Tensor:
        """Keep the coarser codes of each image and sample `level` and all finer levels: uint8 (B, C, H, W).

        Args:
            images: uint8 (B, C, H, W).
            level: the coarsest level that is sampled.
            **options: as for `complete`.
        """
        return self.sample(len(images), kept=self.kept_coarser(images, level), **options)

    def kept_region(self, images: Tensor, keep: str | Tensor) -> dict[str, Kept]:
        """Codes inside a region, for the argument `kept` of `sample`; arguments as for `complete`."""
        size = self._trained.height_width
        mask = region_mask(keep, size)
        return keep_region(self.encode(fill(images, mask)), self._trained.grids, mask, size)

    def kept_coarser(self, images: Tensor, level: str) -> dict[str, Kept]:
        """Codes of the levels coarser than `level`, for the argument `kept` of `sample`."""
        return keep_coarser(self.encode(images), level)

    def read_image(self, path: str | Path) -> Tensor:
        """Read an image file in the size and channels of this run: uint8 (1, C, H, W)."""
        trained = self._trained
        return read_image(Path(path), trained.height_width, trained.channels, trained.background)[None]

    def log_likelihood(self, images: Tensor, labels: Sequence[Label] | Tensor | None = None) -> ImageLikelihood:
        """Likelihood of images, uint8 (B, C, H, W): nats of the codes of each level and bits per dimension.

        Args:
            images: uint8 (B, C, H, W).
            labels: class name or index of each image; None: the unconditional model.

        Raises:
            UserError: images or labels do not match the run, or the unconditional model was not trained
                (`label_dropout` 0).
        """
        given = labels.tolist() if isinstance(labels, Tensor) else labels
        if given is None:
            given = [NO_CLASS if self.classes else None] * len(images)
        chosen = self.labels(given, range(len(images)), seed=0)
        codes = self.encode(images)
        with torch.no_grad(), self._autocast():
            return image_likelihood(images, codes, chosen, self._trained, self.priors, self.run_dir, self.device)

    def labels(
        self, label: Label | Sequence[Label], indices: Sequence[int], seed: int, guidance: float = 1.0
    ) -> Tensor | None:
        """Class index of each image, (B,) int64, -1 for the unconditional model; None if the run has no classes.

        Raises:
            UserError: a label or the guidance is not valid for this run.
        """
        frequencies = self._trained.class_frequencies
        return choose_labels(label, indices, seed, guidance, self.classes, frequencies, self.has_unconditional_model)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
