"""Losses in the log of a run and beside its progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from vispeft.training.logs import RunLog
from vispeft.training.memory import memory_bytes
from vispeft.training.progress import format_bytes
from vispeft.training.state import Counters


@dataclass(frozen=True)
class LossLog:
    """Log of the mean losses and gradient norm since the last line, and of the learning rates.

    every: steps between two lines
    last_step: gets a line in any case
    """

    counters: Counters
    optimizer: Optimizer
    log: RunLog
    every: int
    last_step: int

    def on_step(self, losses: Mapping[str, float]) -> None:
        """Add the losses of a step, and write a line if it is due."""
        counters = self.counters
        for name, value in losses.items():
            counters.loss_sums[name] = counters.loss_sums.get(name, 0.0) + value
        counters.num_summed += 1
        if counters.step % self.every == 0 or counters.step == self.last_step:
            means = {name: total / counters.num_summed for name, total in counters.loss_sums.items()}
            self.log.write(counters.step, "train", {**means, **_rates(self.optimizer)})
            counters.loss_sums, counters.num_summed = {}, 0


def _rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the learning rate of each method and region, before the ratio of LoRA+."""
    groups = [(group["name"].removesuffix("/no_decay"), group["lr"]) for group in optimizer.param_groups]
    return {f"lr_{name}": lr for name, lr in groups if "/" not in name}


def describe_losses(losses: Mapping[str, float], device: torch.device) -> str:
    """Return a step's losses and the memory in use, such as "loss 3.41  class 1.2  grad_norm 0.7  1.2 GB"."""
    parts = [f"{name.removeprefix('loss_')} {value:.3g}" for name, value in losses.items()]
    return "  ".join([*parts, format_bytes(memory_bytes(device))])
