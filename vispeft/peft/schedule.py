"""Deltas that change with the progress of training."""

from __future__ import annotations

from torch import nn

from vispeft.peft.inject import attached
from vispeft.peft.methods.base import Scheduled
from vispeft.peft.methods.mixture import SiteMixture, WeightMixture


def update_schedules(model: nn.Module, step: int, num_steps: int) -> None:
    """Let the deltas of a model that follow a schedule react to an update of the weights, in place.

    Call it after each `optimizer.step()`, before the gradients are set to zero. `vispeft train` does.
    step: steps done, from 1
    num_steps: steps of the whole run
    """
    # named adapters are frozen
    trained = [item.delta for item in attached(model) if not isinstance(item.delta, SiteMixture | WeightMixture)]
    inner = dict.fromkeys(module for delta in trained for module in delta.modules())
    for module in inner:
        if isinstance(module, Scheduled):
            module.on_step(step, num_steps)
