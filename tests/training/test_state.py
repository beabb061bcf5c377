from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from vispeft.errors import CheckpointError
from vispeft.training.callbacks.ema import Ema
from vispeft.training.state import Counters, RunState


@pytest.fixture
def make_state(fabric: Fabric) -> Callable[[float | None], RunState]:
    """States of a small model, with an average of its weights or without."""

    def make(decay: float | None) -> RunState:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return RunState(fabric, model, optimizer, None if decay is None else Ema(model, decay), {})

    return make


def test_restore__restores_everything_and_does_not_change_the_checkpoint(
    make_state: Callable[[float | None], RunState],
) -> None:
    state = make_state(0.9)
    state.model.weight.grad, state.model.bias.grad = torch.ones(2, 2), torch.ones(2)
    state.optimizer.step()
    state.counters.step, state.counters.loss_sums = 7, {"loss": 2.0}
    checkpoint = copy.deepcopy(state.capture())
    other = make_state(0.9)
    other.restore(checkpoint)
    assert torch.equal(other.model.weight, state.model.weight)
    assert other.optimizer.state_dict()["state"][0]["step"] == 1
    assert other.counters == state.counters
    other.counters.step += 1
    other.counters.loss_sums["loss"] += 1
    assert (checkpoint.counters.step, checkpoint.counters.loss_sums) == (7, {"loss": 2.0})


def test_restore__refuses_other_processes_and_another_average(make_state: Callable[[float | None], RunState]) -> None:
    checkpoint = make_state(None).capture()
    with pytest.raises(CheckpointError, match=r"as it began, without an average of its weights \(`ema_decay`\)"):
        make_state(0.9).restore(checkpoint)
    with pytest.raises(CheckpointError, match=r"as it began, with an average"):
        make_state(None).restore(make_state(0.9).capture())
    two = dataclasses.replace(checkpoint, rng=checkpoint.rng * 2)
    with pytest.raises(CheckpointError, match="as many processes as it began with, 2, but has 1"):
        make_state(None).restore(two)


def test_is_out_of_patience__never_without_patience() -> None:
    counters = Counters(evaluations_since_best=3)
    assert [counters.is_out_of_patience(patience) for patience in (None, 2, 3, 4)] == [False, True, True, False]


def test_require_score_of_kept__concerns_weights_without_metrics_only() -> None:
    unscored, scored = Counters(step=2, best_step=2), Counters(step=2, best_step=2, best_metrics={"AP": 0.5})
    for counters in (unscored, scored):
        counters.require_score_of_kept()
    assert (unscored.best_step, unscored.is_evaluation_due) == (-1, True)
    assert (scored.best_step, scored.is_evaluation_due) == (2, False)
