"""Restarts of killed processes by torchrun."""

import json
import os
from pathlib import Path

import psutil
import pytest

from tests.conftest import running, wait_until, write_config
from vqvae2.errors import UserError
from vqvae2.run.restarts import use_fresh_store

LAUNCHED = {
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_PORT": "29500",
}


def test_torchrun_restarts_a_killed_process(tmp_path: Path) -> None:
    """When one of two processes of a stage is killed, torchrun starts both again; they find each other and go on."""
    config = write_config(tmp_path, tmp_path / "run")
    directory = tmp_path / "run" / "stage1"
    steps = {"total_steps": 400, "save_every": 50, "validate_every": 400, "log_every": 50}
    flags = [x for key, value in steps.items() for x in (f"--stage1.{key}", str(value))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    with running("stage1", "--config", str(config), *flags, launcher=launcher) as process:
        wait_until(lambda: list(directory.glob("checkpoints/step_*")) or process.poll() is not None, "a checkpoint")
        assert process.poll() is None, process.communicate()[1]
        first = (directory / "metrics.jsonl").read_bytes().splitlines()[0]
        stages = [x for x in psutil.Process(process.pid).children() if "--stage1.total_steps" in x.cmdline()]
        stages[1].kill()
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    lines = (directory / "metrics.jsonl").read_bytes().splitlines()
    logged = [json.loads(line)["step"] for line in lines if json.loads(line)["split"] == "train"]
    assert lines[0] == first  # with the same seconds: the stage went on from a checkpoint
    assert logged == list(range(50, 401, 50)) and (directory / "model.json").exists()


def launched(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in {**LAUNCHED, **changes}.items():
        monkeypatch.setenv(name, value)


def test_each_restart_has_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt uses the launcher's store, later ones a port that depends on their number; once a process."""
    launched(monkeypatch, TORCHELASTIC_RESTART_COUNT="0")
    use_fresh_store()
    assert os.environ["MASTER_PORT"] == "29500" and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    launched(monkeypatch)
    for _ in range(2):
        use_fresh_store()
        assert os.environ["MASTER_PORT"] == "29502" and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
    launched(monkeypatch, MASTER_PORT="65534")
    use_fresh_store()
    assert os.environ["MASTER_PORT"] == "65532"


def test_restarts_of_several_nodes_need_a_store_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers of several nodes that keep their store are refused at the start, with the remedy."""
    launched(monkeypatch, TORCHELASTIC_RESTART_COUNT="0", GROUP_WORLD_SIZE="2")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        use_fresh_store()
    launched(monkeypatch, GROUP_WORLD_SIZE="2", TORCHELASTIC_USE_AGENT_STORE="False")
    use_fresh_store()
    launched(monkeypatch, GROUP_WORLD_SIZE="2", TORCHELASTIC_MAX_RESTARTS="0", TORCHELASTIC_RESTART_COUNT="0")
    use_fresh_store()
