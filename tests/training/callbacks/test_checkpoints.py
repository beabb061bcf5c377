from __future__ import annotations

from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from vispeft.training.callbacks.checkpoints import CheckpointWriter
from vispeft.training.checkpoint import load_checkpoint
from vispeft.training.state import RunState


def test_checkpoint_writer__writes_when_it_is_due_or_asked(tmp_path: Path, fabric: Fabric) -> None:
    model = nn.Linear(2, 2)
    state = RunState(fabric, model, torch.optim.SGD(model.parameters(), lr=0.1), ema=None, data={"images": 3})
    path = tmp_path / "last.pt"
    writer = CheckpointWriter(path, state, every=2)
    written = []
    for state.counters.step in (1, 2, 3, 4):
        writer.on_step()
        written.append(load_checkpoint(path).counters.step if path.is_file() else None)
    assert written == [None, 2, 2, 4]
    assert load_checkpoint(path).data == {"images": 3}
    state.counters.step = 5
    CheckpointWriter(path, state, every=None).on_step()
    assert load_checkpoint(path).counters.step == 4
    writer.save()
    assert load_checkpoint(path).counters.step == 5
