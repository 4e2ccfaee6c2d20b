"""The model that the tests of the demo use."""

import pytest

from vqvae2 import Generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.from_pretrained("mnist", device="cpu", dtype="float32")
