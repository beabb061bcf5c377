from __future__ import annotations

import pytest
import torch
from torch import nn

from vispeft.errors import CheckpointError
from vispeft.peft import train_mode
from vispeft.training.trained_tensors import restore_tensors, trained_tensors


def test_trained_tensors__holds_trained_parameters_and_the_buffers_beside_them() -> None:
    # a norm without parameters has statistics nevertheless
    full = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Linear(2, 2), full)
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    train_mode(model, update_statistics=True)
    buffers = {f"{norm}.{name}" for norm in ("1", "3.1") for name, _ in model[0].named_buffers()}
    assert len(buffers) == 6
    trained = {"1.weight", "1.bias", "2.bias", "3.0.weight", "3.0.bias"}
    assert set(trained_tensors(model)) == trained | buffers
    # statistics that are not updated belong to the base
    train_mode(model)
    assert set(trained_tensors(model)) == trained


def test_restore_tensors__refuses_names_and_shapes_that_differ_and_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    for tensors, message in [
        ({"weight": torch.zeros(2, 2)}, "1 tensors are not in it.*`bias`"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "1 have another shape: `weight`"),
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "c": torch.zeros(1)}, "1 are in it only.*`c`"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            restore_tensors(model, tensors)
    assert torch.equal(model.weight, before)
