"""The scenarios of two processes, which run once for all tests."""

from pathlib import Path

import pytest

from tests.conftest import made_once
from tests.training.together import run_together

SCENARIOS = ["tests.training.test_sharding", "tests.training.test_elastic"]


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of each scenario."""
    return made_once(tmp_path_factory, "together", lambda folder: run_together(SCENARIOS, folder))
