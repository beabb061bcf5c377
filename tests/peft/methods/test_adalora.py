"""Ranks chosen over all sites by the importance of their triplets, on the paper's schedule."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import AdaLoRA, Plan, inject, load_adapter, save_adapter, update_schedules
from vispeft.peft.inject import attached
from vispeft.training.callbacks.ema import Ema
from vispeft.training.trained_tensors import restore_tensors, trained_tensors

STEPS = 40


def maps() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Conv2d(1, 4, 3, padding=1), nn.Linear(6, 9))


def run(model: nn.Sequential, first: int = 1, last: int = STEPS) -> list[int]:
    """Train on a target that the second linear map alone can reach. Returns the number of triplets in use by step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.3)
    ranks = []
    for step in range(first, last + 1):
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
        hidden = model[1]((x + 0.01 * model[0](x)).view(32, 1, 2, 3)).mean(1).flatten(1)
        loss = (model[2](x) - x.roll(1, 1).repeat(1, 2)[:, :9]).square().mean() + 1e-3 * hidden.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_schedules(model, step, STEPS)
        ranks.append(sum(int((item.delta.e != 0).sum()) for item in attached(model)))
    return ranks


def plan(**options: float) -> Plan:
    return Plan({"0": AdaLoRA(4, every=2, **options), "1 | 2": AdaLoRA(4, every=2, **options)})


def test_adalora__ends_with_the_target_rank_on_average() -> None:
    model = maps()
    inject(model, plan(target_rank=1.5))
    ranks = run(model)
    assert ranks[0] == 12
    # between two choices, what was dropped may come back
    assert ranks[1::2] == sorted(ranks[1::2], reverse=True)
    assert ranks[27:] == [round(1.5 * 3)] * 13


def test_adalora__follows_the_cubic_schedule() -> None:
    model = maps()
    inject(model, plan(target_rank=1, warmup=0.25, final=0.25))
    ranks = run(model)
    expected = {step: round(3 + 9 * (1 - (step - 10) / 20) ** 3) for step in range(10, 31, 2)}
    assert {step: ranks[step - 1] for step in expected} == expected
    assert set(ranks[:9]) == {12}


def test_adalora__gives_the_ranks_to_the_site_that_needs_them() -> None:
    model = maps()
    inject(model, plan(target_rank=1))
    run(model)
    assert [int((item.delta.e != 0).sum()) for item in attached(model)] == [0, 0, 3]


def test_adalora__ranks_by_sensitivity_and_uncertainty() -> None:
    """Equations 8 to 10, and the importance of a triplet, written out for one site and two steps."""
    model = nn.Sequential(nn.Linear(5, 3))
    inject(model, Plan({"0": AdaLoRA(2)}))
    delta = attached(model)[0].delta
    sensitivity, uncertainty = {}, {}
    for step in (1, 2):
        for name in "aeb":
            parameter = delta.get_parameter(name)
            with torch.no_grad():
                parameter.copy_(torch.randn_like(parameter))
            parameter.grad = torch.randn_like(parameter)
            now = (parameter * parameter.grad).detach().abs()
            sensitivity[name] = 0.85 * sensitivity.get(name, 0) + 0.15 * now
            uncertainty[name] = 0.85 * uncertainty.get(name, 0) + 0.15 * (now - sensitivity[name]).abs()
        update_schedules(model, step, 1000)
    score: dict[str, Tensor] = {name: sensitivity[name] * uncertainty[name] for name in "aeb"}
    expected = [score["e"][i] + score["a"][i].mean() + score["b"][:, i].mean() for i in range(2)]
    torch.testing.assert_close(delta.triplets.importance(), torch.stack(expected))


def test_adalora__resumes_as_if_it_had_not_stopped() -> None:
    model, other = maps(), maps()
    inject(model, plan(target_rank=1))
    inject(other, plan(target_rank=1))
    run(model, last=17)
    restore_tensors(other, copy.deepcopy(trained_tensors(model)))
    assert run(model, 18) == run(other, 18)
    for one, another in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, another)


def test_adalora__leaves_its_importances_out_of_the_file(tmp_path: Path) -> None:
    model = maps()
    inject(model, Plan({"0": AdaLoRA(2)}))
    save_adapter(model, tmp_path / "a.safetensors")
    names = ["a", "b", "e", "triplets.is_kept"]
    assert sorted(load_file(tmp_path / "a.safetensors")) == [f"0.adalora.{name}" for name in names]


def test_adalora__ignores_gradients_that_are_not_finite() -> None:
    model = maps()
    inject(model, plan(target_rank=1))
    run(model, last=5)
    before = copy.deepcopy(trained_tensors(model))
    attached(model)[0].delta.e.grad[0] = float("inf")
    update_schedules(model, 7, STEPS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained_tensors(model).items())
    # the last choice is made all the same
    update_schedules(model, 28, STEPS)
    assert sum(int(item.delta.triplets.is_kept.sum()) for item in attached(model)) == 3


def test_adalora__an_average_of_the_weights_keeps_the_budget(tmp_path: Path) -> None:
    model, fresh = maps(), maps()
    inject(model, plan(target_rank=1))
    x = torch.randn(4, 6)
    ema = Ema(model, decay=0.999)
    for step in range(1, STEPS + 1):
        run(model, step, step)
        ema.update()
    with ema.swapped_in():
        assert sum(int((item.delta.e != 0).sum()) for item in attached(model)) > 3
        for item in attached(model):
            rows = item.delta.triplets.scaled_rows().flatten(1)
            assert int(rows.any(1).sum()) == int(item.delta.triplets.is_kept.sum())
        # and so does the model that is saved with it
        save_adapter(model, tmp_path / "a.safetensors")
        load_adapter(fresh, tmp_path / "a.safetensors")
        assert torch.equal(fresh[2](x), model[2](x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_rank": 5.0}, "`target_rank` must be above 0 and at most `rank`, 4"),
        ({"warmup": 0.5, "final": 0.5}, "a sum below 1"),
        ({"every": 0}, "`every` must be at least 1"),
        ({"smoothing": 1.0}, "`smoothing` must be at least 0 and below 1"),
    ],
)
def test_adalora__refuses_options_by_name(options: dict[str, float], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        AdaLoRA(4, **options)
