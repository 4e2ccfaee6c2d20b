"""Pitfalls of clusters: nodes without a shared file system, with other versions or devices, or without the data."""

import json
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from vqvae2.errors import UserError
from vqvae2.run import launch, nodes
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.nodes import check_same_file, check_same_view, compare_environments

PATTERNS = ("model.json", "checkpoints/step_*/*")
ENVIRONMENT = {"python": "3.11.7", "torch": "2.14.1", "git_commit": "abc", "host": "a", "device": "GPU of 80 GB"}
OTHER = SimpleNamespace(num_processes=2, process_index=1, is_main_process=False)


def main_process_sends(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    """Make this process one of several, whose main process has sent its host and `content`."""

    def receive(values: list) -> None:
        values[0] = ("main-host", content)

    monkeypatch.setattr(nodes, "broadcast_object_list", receive)
    monkeypatch.setattr(nodes, "refusals_reach_all", lambda state: nullcontext())
    monkeypatch.setattr(nodes, "VISIBLE_WITHIN_SECONDS", 0.2)


def test_other_versions_are_refused() -> None:
    """The library, both versions and both hosts are named; a commit of this package counts as a version."""
    for name, value in (("torch", "2.13.0"), ("git_commit", "abc-dirty")):
        with pytest.raises(UserError, match=rf"{name} is {ENVIRONMENT[name]} on host a, but {value} on host b"):
            compare_environments([ENVIRONMENT, ENVIRONMENT, ENVIRONMENT | {name: value, "host": "b"}])


def test_other_devices_are_warned_of_once_a_host() -> None:
    """Equal versions on other hosts are fine; another device is a warning."""
    other = ENVIRONMENT | {"host": "b"}
    assert compare_environments([ENVIRONMENT, other]) == []
    (warning,) = compare_environments([ENVIRONMENT, *[other | {"device": "GPU of 24 GB"}] * 2])
    assert "host b has GPU of 24 GB" in warning and "host a GPU of 80 GB" in warning


def test_an_unknown_commit_is_not_another_commit() -> None:
    """A node without git, or with a slow disk, cannot tell the commit; a library that it lacks is refused."""
    assert compare_environments([ENVIRONMENT, ENVIRONMENT | {"git_commit": None, "host": "b"}]) == []
    with pytest.raises(UserError, match="torch is"):
        compare_environments([ENVIRONMENT, ENVIRONMENT | {"torch": None, "host": "b"}])


@pytest.mark.parametrize("content", [None, "of another run"])
def test_a_folder_that_is_not_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A process that does not see the file of the main process names both hosts."""
    path = tmp_path / "lock"
    if content:
        path.write_text(content)

    main_process_sends(monkeypatch, "of this run")
    with pytest.raises(UserError, match=rf"on host {socket.gethostname()} than on host main-host: put run_dir on"):
        check_same_file(path, "", OTHER)
    path.write_text("of this run")
    check_same_file(path, "", OTHER)


def test_processes_that_see_other_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with a disk of its own would otherwise begin from the start, or wait for the others forever."""
    main_process_sends(monkeypatch, [("checkpoints/step_00000002/manifest.json", 5), ("model.json", 2)])
    (tmp_path / "checkpoints" / "step_00000002").mkdir(parents=True)
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "lock").write_text("is not compared")
    for manifest in (None, "1234"):
        if manifest:
            (tmp_path / "checkpoints" / "step_00000002" / "manifest.json").write_text(manifest)
        with pytest.raises(UserError, match="than on host main-host: put run_dir on"):
            check_same_view(tmp_path, PATTERNS, OTHER)
    (tmp_path / "checkpoints" / "step_00000002" / "manifest.json").write_text("12345")
    check_same_view(tmp_path, PATTERNS, OTHER)


@pytest.mark.parametrize("host", ["b", socket.gethostname()])
def test_an_error_of_another_host_names_it(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """An error of a node without the data, for example, is raised by all processes, with the host."""
    theirs = [(None, "a"), (UserError("x.jpg: cannot be read"), host)]
    monkeypatch.setattr(launch, "gather_object", lambda mine: theirs)
    with pytest.raises(UserError) as raised, refusals_reach_all(OTHER):
        pass
    assert str(raised.value) == ("on host b: " if host == "b" else "") + "x.jpg: cannot be read"
    assert raised.value.reaches_all


def test_a_path_that_one_process_cannot_access_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes receive it as a message, instead of waiting for a process that has ended."""
    sent = []
    monkeypatch.setattr(launch, "gather_object", lambda mine: sent.extend(mine) or [*mine, (None, "b")])
    with pytest.raises(UserError, match=r"^/a/b: cannot be accessed") as raised, refusals_reach_all(OTHER):
        raise PermissionError(13, "Permission denied", "/a/b")
    assert sent[0][0] is raised.value and raised.value.reaches_all


def test_the_lock_is_what_processes_compare(tiny_run: tuple[Path, Path]) -> None:
    """A stage leaves the content by which other processes recognize its folder."""
    assert json.loads((tiny_run[1] / "stage1" / "lock").read_text())["host"] == socket.gethostname()
