"""A method class of a user's module is trained from a configuration, saved, and reloaded."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, load_run, train_run
from vispeft.peft import describe, known_methods

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import vispeft as vp
from vispeft.errors import PlanError

@dataclass(frozen=True)
class Shift(vp.Method):
    """`y + factor * b`; b starts at zero."""

    name: ClassVar[str] = "shift"
    factor: float = 1.0

    def for_module(self, module, context):
        return ShiftDelta(self, module.out_features)

    def for_parameter(self, parameter, context):
        raise PlanError("`shift` serves modules.")

class ShiftDelta(vp.Delta):
    def __init__(self, method, features):
        super().__init__(method)
        self.b = nn.Parameter(torch.zeros(features))

    def forward(self, x, y, base):
        return y + self.method.factor * self.b.to(y.dtype)

    def merged(self, weight, bias):
        return weight, bias + self.method.factor * self.b

vp.register_method(Shift)
'''


def test_own_method__is_trained_saved_and_reloaded(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shift_method.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("vispeft.peft.registry._registered", {})
    deltas = {"@encoder.qkv": {"method": "shift", "factor": 0.5}}
    config = {**tiny, "peft": {"modules": ["shift_method"], "deltas": deltas, "train": ["@heads"]}}
    directory = RunDirectory(tmp_path / "run")
    result = train_run(parse_config(config, ["train.methods={shift: {lr: 0.01}}"]), directory)
    assert result.summary is not None
    assert result.summary["methods"] == ["shift", "full"]
    assert "shift, factor 0.5" in directory.report.read_text()

    # as in another process
    monkeypatch.setattr("vispeft.peft.registry._registered", {})
    monkeypatch.delitem(sys.modules, "shift_method")
    state = load_run(directory.root).model.state_dict()
    assert "shift" in known_methods()
    trained = {key: tensor for key, tensor in load_file(directory.adapter).items() if ".shift." in key}
    assert len(trained) == len(describe(directory.adapter).plan.deltas) == 3
    assert all(torch.equal(state[key], tensor) and tensor.any() for key, tensor in trained.items())
