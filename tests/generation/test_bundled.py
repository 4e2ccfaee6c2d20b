"""The models that are part of the package."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import succeed
from vqvae2 import Generator
from vqvae2.config import as_dict
from vqvae2.config.absent import completed
from vqvae2.generation.pretrained import BUNDLED, bundled_names
from vqvae2.generation.samples import read_sample
from vqvae2.run.command_line import parse_config

LARGEST = 4_000_000  # bytes of a bundled model with its card and pictures


@pytest.fixture(scope="module", params=bundled_names())
def generator(request: pytest.FixtureRequest) -> Generator:
    return Generator.from_pretrained(request.param, device="cpu", dtype="float32")


def test_mnist_is_bundled_with_its_card():
    """The package has the model that the README names."""
    assert "mnist" in bundled_names()
    folder = BUNDLED / "mnist"
    assert "(samples.png)" in (folder / "README.md").read_text() and (folder / "samples.png").exists()


@pytest.mark.parametrize("name", bundled_names())
def test_training_yaml_describes_the_bundled_model(name: str):
    """A reader can train the same model with it."""
    given = as_dict(parse_config(["--config", str(BUNDLED / name / "training.yaml")])[0])
    described = json.loads((BUNDLED / name / "config.json").read_text())
    assert given["autoencoder"] == completed(described)["autoencoder"]  # it may have been saved by an earlier version
    for level, sizes in described["priors"].items():
        assert {field: given["priors"][level][field] for field in sizes} == sizes


@pytest.mark.parametrize("name", bundled_names())
def test_a_bundled_model_is_small(name: str):
    assert sum(path.stat().st_size for path in (BUNDLED / name).rglob("*")) <= LARGEST


def test_the_label_decides_what_a_bundled_model_draws(generator: Generator):
    """Under its own label, a sample is likelier than under the other labels, for most samples."""
    labels = [name for name in generator.classes for _ in range(2)]
    images = generator.sample(len(labels), label=labels, seed=0)
    nats = torch.stack(
        [sum(generator.log_likelihood(images, labels=[name] * len(labels)).nats.values()) for name in generator.classes]
    )
    own = torch.tensor([generator.classes.index(name) for name in labels])
    assert (nats.argmin(0) == own).float().mean() > 0.8


def test_codes_of_a_bundled_model_are_learned(generator: Generator):
    """Nats per code of its own samples are far below those of random codes."""
    likelihood = generator.log_likelihood(generator.sample(16, seed=1))
    for grid in (prior.grid for prior in generator.priors.values()):
        per_code = likelihood.nats[grid.name].mean().item() / (grid.height * grid.width)
        assert per_code < 0.5 * math.log(grid.codebook_size)


def test_the_script_draws_digits(tmp_path: Path):
    """sample.py --model mnist writes the generator's samples of a class, most of which that class explains best."""
    flags = ("--num_images", "3", "--label", "7", "--batch_size", "3", "--dtype", "float32")
    succeed("sample", "--model", "mnist", *flags, "--output", str(tmp_path))
    images = torch.stack([read_sample(path) for path in sorted(tmp_path.glob("seed0_*.png"))])
    mnist = Generator.from_pretrained("mnist", device="cpu", dtype="float32")
    assert torch.equal(images, mnist.sample(3, label=7, batch_size=3))
    nats = torch.stack([sum(mnist.log_likelihood(images, labels=[i] * 3).nats.values()) for i in range(10)])
    assert (nats.argmin(0) == 7).sum() >= 2
