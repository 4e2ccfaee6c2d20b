"""What the page does: sample, complete and resample images. Nothing here depends on Gradio."""

from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2.config import SAMPLES_AT_A_TIME
from vqvae2.demo.worker import Job
from vqvae2.errors import UserError
from vqvae2.generation.controls import NO_CLASS, UNCONDITIONAL, Label
from vqvae2.generation.generator import Generator
from vqvae2.prior.kept import Kept

ANY_CLASS = "any class"  # drawn with the training frequencies
LABELS: dict[Label, Label] = {ANY_CLASS: None, UNCONDITIONAL: NO_CLASS}  # for the generator; classes are indices
MOST_IMAGES = 64
MOST_PARTICLES = 64
LARGEST_SEED = 2**53  # whole numbers up to here are exact in a browser


class Settings(NamedTuple):
    """How images are sampled, see `Generator.sample`.

    Attributes:
        label: index of the class, "none" for the unconditional model, or ANY_CLASS.
        temperature: divides the logits.
        top_p: total probability of the codes that are sampled from.
        guidance: scale of classifier-free guidance.
        seed: seed of the random numbers.

    A number is None if its field is empty, which is refused when images are sampled.
    """

    label: Label = ANY_CLASS
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    guidance: float | None = 1.0
    seed: float | None = 0


class Frame(NamedTuple):
    """Images so far.

    Attributes:
        images: uint8 (N, C, H, W).
        fraction: how much of the work is done, from 0 to 1.
    """

    images: Tensor
    fraction: float


def classes_to_choose(generator: Generator) -> list[tuple[str, Label]]:
    """Names and values of the classes that can be chosen, for `Settings.label`; empty without classes."""
    if not generator.classes:
        return []
    others: list[tuple[str, Label]] = [("Any class", ANY_CLASS)]
    others += [("No class", UNCONDITIONAL)] if generator.has_unconditional_model else []
    return others + [(name, i) for i, name in enumerate(generator.classes)]


def whole(name: str, value: float | None, least: int, most: int) -> int:
    """A number of the page as a whole number.

    Raises:
        UserError: it is missing, not whole, or not in the range.
    """
    if value is None or not least <= value <= most or value != int(value):
        raise UserError(f"{name}: {value} is not valid: use a whole number from {least} to {most}")
    return int(value)


def filled(name: str, value: float | None) -> float:
    """A number of the page.

    Raises:
        UserError: its field is empty.
    """
    if value is None:
        raise UserError(f"{name}: the field is empty: enter a number, such as 1")
    return value


def sample(generator: Generator, count: float, settings: Settings, job: Job) -> None:
    """Sample images and show a Frame now and then, and at the end."""
    _draw(generator, count, settings, job, None)


def complete(
    generator: Generator, picture: Tensor, mask: Tensor, count: float, particles: float, settings: Settings, job: Job
) -> None:
    """Complete a picture several times and show a Frame now and then, and at the end.

    Args:
        generator: the trained models.
        picture: uint8 (1, C, H, W).
        mask: what is kept, bool (H, W).
        count: number of completions, which are independent of each other.
        particles: particles of each completion, see `Generator.complete`.
        settings: how images are sampled.
        job: the request.
    """
    _draw(generator, count, settings, job, generator.kept_region(picture, mask), particles)


def resample(generator: Generator, picture: Tensor, level: str, count: float, settings: Settings, job: Job) -> None:
    """Sample a level and all finer ones several times, given the coarser codes of a picture, uint8 (1, C, H, W)."""
    _draw(generator, count, settings, job, generator.kept_coarser(picture, level))


def _draw(
    generator: Generator,
    count: float,
    settings: Settings,
    job: Job,
    kept: dict[str, Kept] | None,
    particles: float = 1,
) -> None:
    total = whole("images", count, 1, MOST_IMAGES)
    each = whole("particles", particles, 1, MOST_PARTICLES)
    seed = whole("seed", settings.seed, 0, LARGEST_SEED)
    temperature = filled("temperature", settings.temperature)
    top_p, guidance = filled("top_p", settings.top_p), filled("guidance", settings.guidance)
    at_a_time = max(1, SAMPLES_AT_A_TIME // each)
    parts = [range(i, min(i + at_a_time, total)) for i in range(0, total, at_a_time)]
    codes = len(parts) * sum(prior.grid.height * prior.grid.width for prior in generator.priors.values())
    finished: list[Tensor] = []
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        job.check()
        done += more

    for part in parts:
        images = generator.sample(
            len(part),
            LABELS.get(settings.label, settings.label),
            temperature=temperature,
            top_p=top_p,
            guidance=guidance,
            seed=seed,
            first_image=part.start,
            batch_size=len(part) * each,
            kept=kept,
            particles=each,
            progress=progress,
            watch=lambda so_far: job.show_at_times(lambda: Frame(torch.cat([*finished, so_far()]), done / codes)),
        )
        finished.append(images)
        job.show(Frame(torch.cat(finished), done / codes))
