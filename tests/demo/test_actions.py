"""What the demo's page does, without Gradio."""

import pytest
import torch

from vqvae2 import Generator
from vqvae2.demo import actions
from vqvae2.demo.actions import ANY_CLASS, Frame, Settings, classes_to_choose, whole
from vqvae2.demo.worker import CancelledError, Job
from vqvae2.errors import UserError


class Recorder(Job):
    """A job that makes every fifth intermediate result; it is cancelled when it has shown `limit` frames."""

    def __init__(self, limit: int = 10**6):
        super().__init__()
        self.frames: list[Frame] = []
        self.limit = limit
        self.calls = 0

    def show(self, result: Frame) -> None:
        self.frames.append(result)
        if len(self.frames) == self.limit:
            self.cancelled.set()

    def show_at_times(self, make) -> None:
        self.check()
        if self.calls % 5 == 0:
            self.show(make())
        self.calls += 1


@pytest.fixture(scope="module")
def picture(generator: Generator) -> torch.Tensor:
    return generator.sample(1, label=3, seed=4)


def test_samples_appear_and_become_those_of_the_generator(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of finished batches stay, those of the present batch change; the last frame has the generator's."""
    monkeypatch.setattr(actions, "SAMPLES_AT_A_TIME", 2)
    job = Recorder()
    actions.sample(generator, 3, Settings(5, temperature=0.8, top_p=0.9, guidance=2.0, seed=7), job)
    options = {"label": 5, "temperature": 0.8, "top_p": 0.9, "guidance": 2.0, "seed": 7}
    expected = torch.cat(
        [
            generator.sample(2, **options, batch_size=2),
            generator.sample(1, **options, first_image=2, batch_size=1),
        ]
    )
    assert torch.equal(job.frames[-1].images, expected)
    fractions = [frame.fraction for frame in job.frames]
    assert fractions == sorted(fractions) and fractions[-1] == 1 and fractions[0] < 0.01
    later = [frame for frame in job.frames if frame.fraction > 0.5]
    assert len(later) > 5 and all(torch.equal(frame.images[:2], expected[:2]) for frame in later)
    assert len({frame.images.numpy().tobytes() for frame in job.frames}) > 5


def test_any_class_is_drawn_by_the_generator(generator: Generator) -> None:
    job = Recorder()
    actions.sample(generator, 2, Settings(ANY_CLASS, seed=1), job)
    assert torch.equal(job.frames[-1].images, generator.sample(2, seed=1, batch_size=2))


@pytest.mark.parametrize(("count", "particles"), [(3, 2), (2, 16)])
def test_completions_are_independent_and_have_their_own_particles(
    generator: Generator, picture: torch.Tensor, count: int, particles: int
) -> None:
    """They are what Generator.complete gives for copies of the picture, and differ from each other."""
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[:12] = True
    job = Recorder()
    actions.complete(generator, picture, mask, count, particles, Settings(3, seed=2), job)
    copies, rows = picture.expand(count, -1, -1, -1), min(count, 16 // particles) * particles
    expected = generator.complete(copies, mask, particles=particles, label=3, seed=2, batch_size=rows)
    images = job.frames[-1].images
    assert torch.equal(images, expected) and len(images.flatten(1).unique(dim=0)) == count
    assert job.frames[0].images.shape == (min(count, 16 // particles), 1, 28, 28)


def test_resampling_keeps_the_coarser_codes(generator: Generator, picture: torch.Tensor) -> None:
    job = Recorder()
    actions.resample(generator, picture, "bottom", 3, Settings(3, seed=2), job)
    copies = picture.expand(3, -1, -1, -1)
    assert torch.equal(job.frames[-1].images, generator.resample(copies, label=3, seed=2, batch_size=3))


def test_a_cancelled_job_ends_before_its_work(generator: Generator) -> None:
    job = Recorder(limit=3)
    with pytest.raises(CancelledError):
        actions.sample(generator, 2, Settings(), job)
    assert len(job.frames) == 3 and job.frames[-1].fraction < 0.3


@pytest.mark.parametrize(
    ("count", "settings", "said"),
    [
        (0, Settings(), "images: 0 is not valid"),
        (65, Settings(), "images: 65"),
        (2.5, Settings(), "images: 2.5"),
        (None, Settings(), "images: None"),
        (1, Settings(seed=None), "seed: None"),
        (1, Settings(seed=-1), "seed: -1"),
        (1, Settings(seed=float("nan")), "seed: nan"),
        (1, Settings(temperature=0), "temperature: 0"),
        (1, Settings(top_p=2), "top_p: 2"),
        (1, Settings(label="ten"), "'ten' is not a class"),
        (1, Settings(temperature=None), "temperature: the field is empty: enter a number"),
        (1, Settings(top_p=None), "top_p: the field is empty"),
        (1, Settings(guidance=None), "guidance: the field is empty"),
    ],
)
def test_values_that_do_not_fit_are_refused(generator: Generator, count: float, settings: Settings, said: str) -> None:
    with pytest.raises(UserError, match=said):
        actions.sample(generator, count, settings, Recorder())


def test_whole_numbers_of_the_page() -> None:
    assert whole("seed", 3.0, 0, 5) == 3 and isinstance(whole("seed", 3.0, 0, 5), int)
    for value in (None, 6, -1, 2.5, float("inf"), float("nan")):
        with pytest.raises(UserError, match="use a whole number from 0 to 5"):
            whole("seed", value, 0, 5)


def test_classes_to_choose(generator: Generator) -> None:
    """All classes by index, after "any class" and, as labels were dropped in training, "no class"."""
    found = classes_to_choose(generator)
    assert found[:2] == [("Any class", ANY_CLASS), ("No class", "none")]
    assert found[2:] == [(name, i) for i, name in enumerate(generator.classes)]
