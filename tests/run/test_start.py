"""Tests of the weights that training starts from."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vqvae2.errors import UserError
from vqvae2.run.model_files import export_model
from vqvae2.run.start import read_start, start_model


def model(classes: int, width: int = 3) -> nn.ModuleDict:
    return nn.ModuleDict({"labels": nn.Embedding(classes, width), "layer": nn.Linear(width, 2)})


def test_weights_are_copied_and_the_class_table_is_kept_where_its_size_differs(tmp_path: Path) -> None:
    old, same, other = model(4), model(4), model(5)
    export_model(tmp_path, old.state_dict(), {})
    start = read_start(tmp_path, "pipelines/stage1.py")
    table = other["labels"].weight.clone()
    for new in (same, other):
        start_model(new, start, ["labels.weight"])
        assert torch.equal(new["layer"].weight, old["layer"].weight)
    assert torch.equal(same["labels"].weight, old["labels"].weight)
    assert torch.equal(other["labels"].weight, table)
    assert start.started_from == {"path": str(tmp_path), "sha256": start.description["sha256"]}


def test_other_sizes_are_refused_and_change_nothing(tmp_path: Path) -> None:
    export_model(tmp_path, model(4).state_dict(), {})
    new = model(4, width=5)
    before = {key: x.clone() for key, x in new.state_dict().items()}
    with pytest.raises(UserError, match=r"labels.weight is \(4, 3\) there and \(4, 5\) here"):
        start_model(new, read_start(tmp_path, "pipelines/stage1.py"), ["labels.weight"])
    assert all(torch.equal(x, before[key]) for key, x in new.state_dict().items())


def test_a_stage_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file not found: run pipelines/stage1.py"):
        read_start(tmp_path, "pipelines/stage1.py")
