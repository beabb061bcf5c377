from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from vispeft.peft import train_mode
from vispeft.training.callbacks.ema import Ema
from vispeft.training.evaluation_mode import evaluation_mode
from vispeft.training.state import RunState


def test_evaluation_mode__sets_averages_and_eval_mode_and_undoes_both_even_after_an_error(
    fabric: Fabric,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    train_mode(model)
    ema = Ema(model, 0.9)
    average = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.mul_(1 / 3)
    trained = model[0].weight.detach().clone()
    state = RunState(fabric, model, torch.optim.SGD(model.parameters(), lr=0.1), ema, {})
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()

    def compare_and_fail() -> None:
        assert torch.equal(model[0].weight, average)
        assert not any(module.training for module in model.modules())
        torch.rand(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), evaluation_mode(state, update_statistics=False):
        compare_and_fail()
    assert torch.equal(model[0].weight, trained)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
