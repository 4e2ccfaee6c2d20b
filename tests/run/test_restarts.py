"""Restarts of killed processes by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vqvae2.errors import UserError
from vqvae2.run.restarts import use_fresh_store

LAUNCHED = {
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_PORT": "29500",
}

KILLED = """
import os, signal, sys
import torch
from vqvae2.run.launch import join_processes

state = join_processes()
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
total = torch.ones(1)
torch.distributed.all_reduce(total)
with open(f"{sys.argv[1]}/attempt{attempt}.{state.process_index}", "w") as file:
    file.write(str(int(total)))
if attempt == "0" and state.process_index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
torch.distributed.all_reduce(total)
os._exit(0)
"""


def test_torchrun_restarts_a_killed_process(tmp_path: Path) -> None:
    """When one of two processes is killed, torchrun starts both again, and they find each other."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = f"{ROOT}:{environment.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max-restarts", "1", str(script), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_text() for path in tmp_path.glob("attempt*")} == {
        f"attempt{attempt}.{process}": "2" for attempt in (0, 1) for process in (0, 1)
    }


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
