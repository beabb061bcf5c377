"""A run calls the schedules of its deltas, and resumes in the middle of one."""

import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, train_run
from vispeft.training.callbacks.base import Callback

ADALORA = {"method": "adalora", "rank": 4, "target_rank": 1, "every": 1, "warmup": 0.0}


def stop_at_3(step: int, _: int) -> None:
    if step == 3:
        signal.raise_signal(signal.SIGINT)


def test_train_run__follows_the_schedule_of_a_method_and_resumes_in_it(tiny: dict[str, Any], tmp_path: Path) -> None:
    changed = {
        **tiny,
        "peft": {"deltas": {"@encoder.qkv": ADALORA}, "train": ["@heads"]},
        "train": {**tiny["train"], "steps": 8, "eval_every": 8},
    }
    config = parse_config(changed)
    whole, resumed = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "resumed")
    train_run(config, whole)
    assert train_run(config, resumed, callbacks=[Callback(on_step=stop_at_3)]).step == 3
    train_run(config, resumed, resume=True)
    first, second = load_file(whole.adapter), load_file(resumed.adapter)
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    kept = [int((tensor != 0).sum()) for name, tensor in first.items() if name.endswith(".adalora.e")]
    assert len(kept) == 3
    assert sum(kept) == 3  # one per site on average
