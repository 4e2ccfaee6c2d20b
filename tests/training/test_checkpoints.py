"""Checkpoints: round trips, interrupted writes and damaged files."""

import resource
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vqvae2.errors import UserError
from vqvae2.run.directory import sha256
from vqvae2.run.model_files import save_tensors
from vqvae2.training import checkpoints
from vqvae2.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint


def checkpoint(step: int) -> Checkpoint:
    """Return a checkpoint whose tensors contain its step."""
    weights = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last) + step
    return Checkpoint(step, {"module": {"a.weight": weights, "count": torch.tensor(step)}, "sums": {}})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Context manager in which files cannot grow beyond `size` bytes, as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)


def test_round_trip(tmp_path: Path) -> None:
    """All tensors are restored bit for bit, including scalars, empty groups and channels-last tensors."""
    saved = checkpoint(7)
    save_checkpoint(tmp_path / "checkpoints", saved)
    loaded = load_checkpoint(tmp_path / "checkpoints")
    assert loaded.step == 7
    assert loaded.groups.keys() == saved.groups.keys()
    for group, tensors in saved.groups.items():
        assert loaded.groups[group].keys() == tensors.keys()
        assert all(torch.equal(loaded.groups[group][name], tensor) for name, tensor in tensors.items())


def test_nothing_to_load(tmp_path: Path) -> None:
    """Without a checkpoint, None is returned and no warning is issued."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(tmp_path / "checkpoints") is None


def test_newest_two_are_kept(tmp_path: Path) -> None:
    """Only the newest two checkpoints are kept, and the newest is loaded."""
    for step in (2, 30, 4):
        save_checkpoint(tmp_path, checkpoint(step))
    assert names(tmp_path) == ["step_00000004", "step_00000030"]
    save_checkpoint(tmp_path, checkpoint(100))
    assert names(tmp_path) == ["step_00000030", "step_00000100"]
    assert load_checkpoint(tmp_path).step == 100


def test_step_may_be_saved_again(tmp_path: Path) -> None:
    """A second checkpoint of the same step replaces the first."""
    for value in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(5, {"module": {"a": torch.tensor(value)}}))
    assert load_checkpoint(tmp_path).groups["module"]["a"] == 2


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("module.safetensors", flip_a_byte),
        ("module.safetensors", lambda path: path.write_bytes(path.read_bytes()[:50])),
        ("module.safetensors", Path.unlink),
        ("manifest.json", Path.unlink),
        ("manifest.json", lambda path: path.write_text('{"step": 3, "sha')),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe")),
    ],
)
def test_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path: Path, file: str, damage) -> None:
    """If the newest checkpoint is damaged, a warning names it and the previous one is loaded."""
    for step in (2, 3):
        save_checkpoint(tmp_path, checkpoint(step))
    damage(tmp_path / "step_00000003" / file)
    with pytest.warns(UserWarning, match="step_00000003"):
        loaded = load_checkpoint(tmp_path)
    assert loaded.step == loaded.groups["module"]["count"] == 2


def test_half_written_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    """A partially written checkpoint is not loaded, and the next save succeeds and removes it."""
    save_checkpoint(tmp_path, checkpoint(2))
    (tmp_path / "step_00000002").rename(tmp_path / ".step_00000004.partial")
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, checkpoint(4))
    assert load_checkpoint(tmp_path).groups["module"]["count"] == 4
    assert names(tmp_path) == ["step_00000004"]


def test_what_killed_processes_have_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    """Training may never save at the step of an unfinished checkpoint again, which can take up many gigabytes."""
    for step in (2, 3):
        save_checkpoint(tmp_path, checkpoint(step))
        (tmp_path / f"step_{step:08d}").rename(tmp_path / f".step_{step:08d}.partial")
    save_checkpoint(tmp_path, checkpoint(10))
    assert names(tmp_path) == ["step_00000010"]


def test_failed_write_keeps_the_former_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk raises a UserError; the earlier checkpoints are kept and no partial one remains."""
    for step in (2, 3):
        save_checkpoint(tmp_path, checkpoint(step))

    def refuse(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "save_tensors", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(tmp_path, checkpoint(4))
    assert names(tmp_path) == ["step_00000002", "step_00000003"]
    assert load_checkpoint(tmp_path).step == 3


def test_a_file_is_hashed_while_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second file is only complete once the first one is being hashed, so hashing adds no time of its own."""
    hashing, written = threading.Event(), []

    def write(tensors: dict, path: Path) -> None:
        assert path.name != "b.safetensors" or hashing.wait(timeout=30)
        save_tensors(tensors, path)
        written.append(path.name)

    def digest(path: Path) -> str:
        if path.name == "a.safetensors":
            assert written == ["a.safetensors"]
            hashing.set()
        return sha256(path)

    monkeypatch.setattr(checkpoints, "save_tensors", write)
    monkeypatch.setattr(checkpoints, "sha256", digest)
    save_checkpoint(tmp_path, Checkpoint(1, {"a": {"x": torch.ones(3)}, "b": {"x": torch.zeros(3)}}))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).groups["b"]["x"].tolist() == [0, 0, 0]


def test_large_groups_are_split_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group larger than FILE_BYTES has several files, which are joined when it is loaded; each is checked."""
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 64)
    tensors = {f"x{i}": torch.full((5,), float(i)) for i in range(7)} | {"large": torch.randn(100)}
    save_checkpoint(tmp_path, Checkpoint(1, {"module": tensors, "sums": {}}))
    loaded = load_checkpoint(tmp_path).groups
    assert loaded["module"].keys() == tensors.keys() and loaded["sums"] == {}
    assert all(torch.equal(loaded["module"][name], x) for name, x in tensors.items())
    files = sorted((tmp_path / "step_00000001").glob("module*"))
    assert len(files) == 4 and all(path.stat().st_size < 1000 for path in files)
    flip_a_byte(files[2])
    with pytest.warns(UserWarning, match=files[2].name), pytest.raises(UserError, match="all checkpoints are damaged"):
        load_checkpoint(tmp_path)


def test_refusal_by_the_operating_system_reaches_the_user(tmp_path: Path) -> None:
    """A write error that safetensors reports with its own exception also raises a UserError."""
    save_checkpoint(tmp_path, checkpoint(2))
    large = Checkpoint(3, {"module": {"a": torch.zeros(100_000)}})
    with pytest.raises(UserError, match=str(tmp_path)), largest_file(100_000):
        save_checkpoint(tmp_path, large)
    assert names(tmp_path) == ["step_00000002"]
