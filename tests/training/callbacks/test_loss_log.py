from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from vispeft.training.callbacks.loss_log import LossLog, describe_losses
from vispeft.training.logs import RunLog, read_metrics
from vispeft.training.state import Counters


def test_on_step__writes_means_since_the_last_line_and_the_last_step_in_any_case(tmp_path: Path) -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    names = ("lora", "lora/no_decay", "lora/lora_plus", "ia3/no_decay")
    groups = [{"params": [w], "name": name} for w, name in zip(weights, names, strict=True)]
    counters = Counters()
    with RunLog(tmp_path, use_tensorboard=False) as log:
        loss_log = LossLog(counters, torch.optim.SGD(groups, lr=0.5), log, every=2, last_step=3)
        for counters.step, loss in ((1, 1.0), (2, 2.0), (3, 5.0)):
            loss_log.on_step({"loss": loss})
    assert read_metrics(log.path) == [
        {"step": 2, "split": "train", "loss": 1.5, "lr_lora": 0.5, "lr_ia3": 0.5},
        {"step": 3, "split": "train", "loss": 5.0, "lr_lora": 0.5, "lr_ia3": 0.5},
    ]
    assert (counters.loss_sums, counters.num_summed) == ({}, 0)


def test_describe_losses() -> None:
    text = describe_losses({"loss": 3.414, "loss_class": 1.2, "grad_norm": 0.7}, torch.device("cpu"))
    assert re.fullmatch(r"loss 3\.41  class 1\.2  grad_norm 0\.7  \S+ [MG]B", text)
