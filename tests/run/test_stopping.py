"""Stopping: signals, loss of the launcher, errors in another process, and directories that are in use."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.by_hand.soak import soak
from tests.conftest import ROOT, command_of, refusal, running, succeed, wait_until, write_config
from vqvae2 import stages
from vqvae2.config import AutoencoderConfig, Config, ImagesConfig, Stage2Config, TrainConfig
from vqvae2.errors import StoppedError
from vqvae2.run import stopping
from vqvae2.run.command_line import INTERRUPTED, STOPPED, run
from vqvae2.run.stopping import StopRequests

ENDLESS = ["--stage1.total_steps", "100000", "--stage1.validate_every", "100000", "--stage1.save_every", "100000"]


@pytest.fixture
def endless(tmp_path: Path) -> list[str]:
    """Flags of a stage 1 that saves a checkpoint only when it is stopped."""
    return ["--config", str(write_config(tmp_path, tmp_path / "run")), *ENDLESS]


def has_begun(folder: Path) -> bool:
    """Whether stage 1 has logged a step."""
    log = folder / "run" / "stage1" / "metrics.jsonl"
    return log.exists() and log.stat().st_size > 0


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints of stage 1."""
    checkpoints = (folder / "run" / "stage1" / "checkpoints").glob("step_*")
    return sorted(int(path.name.removeprefix("step_")) for path in checkpoints)


def process_of(folder: Path) -> int:
    """The id of the training process, read from its lock file."""
    return json.loads((folder / "run" / "stage1" / "lock").read_text())["process"]


def is_alive(process: int) -> bool:
    """Whether a process is running; zombies do not count."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda x: x.name)
def test_signal_finishes_the_step_and_saves(tmp_path: Path, endless: list[str], number: signal.Signals) -> None:
    """After a signal the stage saves, prints a message and exits with code 75; the same command resumes.

    While the stage runs, a second process on the same directory is refused.
    """
    with running("stage1", *endless) as process:
        wait_until(lambda: has_begun(tmp_path), "the first step")
        if number == signal.SIGTERM:
            assert f"in use by process {process.pid} on host {os.uname().nodename}" in refusal("stage1", *endless)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED == 75
    (step,) = saved_steps(tmp_path)
    assert f"stopped by {number.name} and saved at step {step}" in errors and "Traceback" not in errors
    out = succeed("stage1", *endless[:2], "--stage1.total_steps", str(step + 1))
    assert f"going on from step {step}" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda x: x.name)
def test_a_signal_outside_training_ends_with_the_same_code(
    number: signal.Signals, capsys: pytest.CaptureFixture
) -> None:
    """As in a survey, where nothing is to be saved; exceptions that a library catches do not hide it."""

    def main() -> None:
        with suppress(Exception):
            os.kill(os.getpid(), number)
            wait_until(lambda: False, "the signal")

    former = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit:
        run(main)
    assert exit.value.code == STOPPED and f"stopped by {number.name}: run the same" in capsys.readouterr().err
    assert signal.getsignal(number) == former


def test_a_request_during_the_last_step_of_a_prior_keeps_the_next_one_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []
    config = Config("run", ImagesConfig(), AutoencoderConfig([]), TrainConfig(), Stage2Config(), {})
    monkeypatch.setattr(stages, "train_prior", lambda config, level: begun.append(level) or "SIGUSR1")
    with pytest.raises(StoppedError, match="stopped by SIGUSR1 after the prior of middle"):
        stages.train_priors(config, ["middle", "bottom"])
    assert begun == ["middle"]
    stages.train_priors(config, ["bottom"])  # there is none left


def test_one_of_two_processes_stops_both(tmp_path: Path, endless: list[str]) -> None:
    """A signal to one of two processes stops both at the same step, with one checkpoint."""
    with running("stage1", *endless, processes=2) as process:
        wait_until(lambda: has_begun(tmp_path), "the first step")
        first = process_of(tmp_path)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (other,) = {int(child) for child in children} - {first}
        os.kill(other, signal.SIGUSR1)
        _, errors = process.communicate(timeout=60)
    (step,) = saved_steps(tmp_path)
    assert f"saved at step {step}" in errors
    assert not is_alive(first) and not is_alive(other)


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (1, signal.SIGUSR1), (2, signal.SIGKILL)])
def test_lost_launcher_is_noticed(tmp_path: Path, endless: list[str], processes: int, number: signal.Signals) -> None:
    """When the launcher exits without forwarding a signal, its processes save and stop."""
    with running("stage1", *endless, processes=processes) as launcher:
        wait_until(lambda: has_begun(tmp_path), "the first step")
        orphan = process_of(tmp_path)
        assert orphan != launcher.pid
        launcher.send_signal(number)
        launcher.wait(timeout=60)
        wait_until(lambda: not is_alive(orphan), "the orphan's end", seconds=60)
    assert len(saved_steps(tmp_path)) == 1


FAILING = """
import os, sys
from vqvae2.autoencoder.objective import AutoencoderObjective

end_step = AutoencoderObjective.end_step
def failing(self, step, applied, reduce):
    if os.environ["RANK"] == "1" and step == 5:
        raise RuntimeError("broken on purpose")
    end_step(self, step, applied, reduce)
AutoencoderObjective.end_step = failing

sys.path.insert(0, sys.argv.pop(1))
import stage1
stage1.run(stage1.main)
"""


def test_error_on_one_process_ends_all(tmp_path: Path, endless: list[str]) -> None:
    """An error in one process ends all of them with its message, without a checkpoint."""
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    command, environment = command_of("stage1", *endless, processes=2)
    at = command.index(str(ROOT / "pipelines" / "stage1.py"))
    command[at : at + 1] = [str(script), str(ROOT / "pipelines")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, cwd=ROOT)
    assert result.returncode != 0
    assert "broken on purpose" in result.stderr
    assert has_begun(tmp_path) and saved_steps(tmp_path) == []


@pytest.fixture
def requests() -> StopRequests:
    """An entered StopRequests; checks that the signal handlers are restored on exit."""
    former = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    with StopRequests() as entered:
        yield entered
    assert {number: signal.getsignal(number) for number in stopping.SIGNALS} == former


def test_second_interrupt_ends_at_once(requests: StopRequests, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first SIGINT is recorded, one immediately after it is ignored, and a later one raises KeyboardInterrupt."""
    assert requests.reason() is None
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert requests.reason() == "SIGINT"
    monkeypatch.setattr(stopping, "ONE_KEYSTROKE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert INTERRUPTED == 130


@pytest.mark.parametrize("launched", [False, True])
def test_parent_counts_only_where_it_is_a_launcher(
    requests: StopRequests, monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    """The exit of the parent process stops a run only if the run was started by a launcher, not by a shell."""
    for name in stopping.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    if launched:
        monkeypatch.setenv(stopping.LAUNCHED[0], "no")
    monkeypatch.setattr(stopping._Parent, "process", os.getppid() + 1)
    assert (requests.reason() is not None) == launched


def test_environment_is_recorded(tiny_run: tuple[Path, Path]) -> None:
    """Each training stage writes environment.json beside its configuration."""
    for stage in ("stage1", "stage3", "stage4/bottom"):
        environment = json.loads((tiny_run[1] / stage / "environment.json").read_text())
        assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
        assert re.match(r"\d+\.\d+", environment["torch"]) and re.match(r"\d+\.\d+", environment["vqvae2"])
        assert environment["processes"] == 1 and environment["mixed_precision"] == "no" and environment["device"]


@pytest.mark.parametrize("name", ["stage1", "stage4"])  # stage 3 is stage 4 without coarser codes
def test_killed_stage_ends_as_if_left_alone(tiny_run: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """A stage that is killed at a random moment and restarted gives the same weights and log, bit for bit.

    tests/by_hand/soak.py repeats this many times.
    """
    config, run_dir = tiny_run
    assert soak(run_dir, config, name, 1, random.Random(), tmp_path) == (1, 1)


FAKE_SRUN = """#!/bin/bash
echo "$@" > "$ARGUMENTS"
while [[ "$1" == --* ]]; do shift; done
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks="$tasks $!"; done
for task in $tasks; do wait $task || code=$?; done
exit ${code:-0}
"""
FAKE_SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" > "$REQUEUED"; else echo 127.0.0.1; fi
"""
SLURM_SCRIPT = str(ROOT / "configs" / "accelerate" / "slurm.sh")
KILL_WAIT = 30  # seconds from SIGTERM to SIGKILL, if slurm.conf sets no other


def fake_slurm(folder: Path, srun: str) -> dict[str, str]:
    """Write stand-ins for Slurm's commands, and return the environment of a job of two tasks that uses them."""
    for name, content in (("srun", srun), ("scontrol", FAKE_SCONTROL)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "8"}
    slurm |= {"REQUEUED": str(folder / "requeued"), "ARGUMENTS": str(folder / "arguments")}
    return {**slurm, "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_slurm_script_requeues_a_stopped_job(tmp_path: Path, endless: list[str]) -> None:
    """A signal to the job step stops the run with a checkpoint, and the script requeues the job.

    Slurm's commands are replaced by stand-ins that start two tasks. A task that does not end is killed within a minute.
    """
    command, environment = command_of("stage1", *endless, processes=1)
    environment |= {**fake_slurm(tmp_path, FAKE_SRUN), "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    script = [SLURM_SCRIPT, *command[command.index("--num_processes") + 2 :]]
    with subprocess.Popen(["bash", *script], env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) as job:
        wait_until(lambda: has_begun(tmp_path), "the first step")
        os.kill(process_of(tmp_path), signal.SIGUSR1)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == STOPPED and (tmp_path / "requeued").read_text() == "17\n"
    (step,) = saved_steps(tmp_path)
    assert f"stopped by SIGUSR1 and saved at step {step}" in errors
    (wait,) = re.findall(r"--wait=(\d+)", (tmp_path / "arguments").read_text())
    assert int(wait) + KILL_WAIT <= 60
    assert "--cpus-per-task=8" in (tmp_path / "arguments").read_text()  # some versions of srun do not know it otherwise


@pytest.mark.parametrize(
    ("code", "restarts", "requeues"),
    [
        (0, None, False),
        (1, None, False),
        (INTERRUPTED, None, False),
        (STOPPED, None, True),
        (STOPPED, 99, True),
        (137, None, True),
        (137, 9, True),
        (137, 10, False),
        (143, 3, True),
    ],
)
def test_slurm_script_requeues_a_killed_job_a_few_times(
    tmp_path: Path, code: int, restarts: int | None, requeues: bool
) -> None:
    """A job of which a task was killed is queued again up to 10 times, a stopped one always, one that failed never."""
    environment = fake_slurm(tmp_path, f"#!/bin/bash\nexit {code}\n")
    if restarts is not None:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    result = subprocess.run(["bash", SLURM_SCRIPT, "stage1.py"], env=environment, timeout=60)
    assert result.returncode == code and (tmp_path / "requeued").exists() == requeues


def test_limit_of_the_slurm_script_can_be_set(tmp_path: Path) -> None:
    """With MAX_RESTARTS, a killed job is queued again as often as it says."""
    environment = fake_slurm(tmp_path, "#!/bin/bash\nexit 137\n") | {"MAX_RESTARTS": "2"}
    for restarts in (1, 2):
        subprocess.run(["bash", SLURM_SCRIPT], env={**environment, "SLURM_RESTART_COUNT": str(restarts)}, timeout=60)
        assert (tmp_path / "requeued").exists() == (restarts == 1)
        (tmp_path / "requeued").unlink(missing_ok=True)
