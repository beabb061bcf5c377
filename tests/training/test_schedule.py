from __future__ import annotations

import pytest
import torch

from vispeft.errors import TrainingError
from vispeft.training.schedule import Schedule


def test_factor__warms_up_linearly_and_never_from_zero() -> None:
    schedule = Schedule(steps=100, warmup=4, kind="constant")
    assert [schedule.factor(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_factor__cosine_falls_from_one_to_the_final_factor() -> None:
    schedule = Schedule(steps=110, warmup=10, final_factor=0.1)
    assert schedule.factor(10) == 1.0
    # (1 + cos 45 deg) / 2 after a quarter of the way, and its complement after three
    assert schedule.factor(35) == pytest.approx(0.1 + 0.9 * 0.8535534)
    assert schedule.factor(60) == pytest.approx(0.55)
    assert schedule.factor(85) == pytest.approx(0.1 + 0.9 * 0.1464466)
    assert schedule.factor(110) == pytest.approx(0.1)
    factors = [schedule.factor(step) for step in range(10, 110)]
    assert factors == sorted(factors, reverse=True)


def test_factor__steps_at_the_milestones() -> None:
    schedule = Schedule(steps=1000, kind="step", milestones=(0.889, 0.963), gamma=0.1)
    assert [schedule.factor(step) for step in (888, 889, 962, 963, 999)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_apply__scales_each_group_from_its_own_rate() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [w], "lr": lr, "initial_lr": lr} for w, lr in zip(weights, (1.0, 0.5), strict=True)], lr=1.0
    )
    schedule = Schedule(steps=10, kind="step", milestones=(0.5,), gamma=0.5)
    for step in (0, 5, 6):
        schedule.apply(optimizer, step)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]


def test_apply__leaves_a_group_frozen_before_its_start() -> None:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": [w], "lr": 0.1, "initial_lr": 0.1} for w in weights]
    optimizer = torch.optim.AdamW([groups[0] | {"start": 0.25}, groups[1]])
    schedule, values = Schedule(steps=8, kind="constant"), []
    for step in range(4):
        schedule.apply(optimizer, step)
        for weight in weights:
            weight.grad = torch.ones(1)
        optimizer.step()
        values.append(weights[0].item())
    assert values[:2] == [1.0, 1.0]
    assert values[3] < values[2] < 1.0
    assert weights[1].item() < values[3]


@pytest.mark.parametrize("warmup", [-1, 11])
def test_schedule__refuses_a_warmup_that_does_not_fit(warmup: int) -> None:
    with pytest.raises(TrainingError, match=r"`warmup` must be between 0 and the number of steps, 10"):
        Schedule(steps=10, warmup=warmup)
