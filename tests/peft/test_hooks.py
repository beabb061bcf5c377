"""Forward hooks of an injected model beside those of others."""

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import IA3, VPT, LoRA, Plan, disabled, inject, remove
from vispeft.peft.hooks import deltas_of, hook_of_others, hooks_before_deltas


def observe(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """A hook of another library."""


def injected() -> nn.Sequential:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU())
    inject(model, Plan({"0": IA3(), "1": (LoRA(2), IA3())}))
    return model


def test_deltas_of__gives_them_in_the_order_of_the_plan() -> None:
    model = injected()
    assert [delta.method.name for delta in deltas_of(model[1])] == ["lora", "ia3"]


@pytest.mark.parametrize("site", [0, 1])
def test_hooks_before_deltas__are_those_of_others(site: int) -> None:
    model = injected()
    assert hooks_before_deltas(model[site]) == []
    model[site].register_forward_hook(observe)
    assert hooks_before_deltas(model[site]) == []
    model[site].register_forward_hook(observe, prepend=True)
    assert hooks_before_deltas(model[site]) == [observe]


def test_hook_of_others__names_the_first_that_may_change_the_result() -> None:
    model = injected()
    assert hook_of_others(model[1]) is None
    model[1].register_forward_hook(observe)
    assert hook_of_others(model[1]) is None
    model[1].register_forward_hook(observe, prepend=True)
    assert hook_of_others(model[1]) == "observe"
    model[1].register_forward_pre_hook(torch.nn.Identity())
    assert hook_of_others(model[1]) == "Identity"


def test_remove__takes_every_hook_out() -> None:
    model = injected()
    remove(model)
    assert not [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


class Paired(nn.Module):
    """A module that gets a pair of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.map(pair[0] + pair[1])


def test_change_input__needs_a_tensor_unless_deltas_are_disabled() -> None:
    model, pair = nn.Sequential(Paired()), (torch.ones(1, 2, 4), torch.ones(1, 2, 4))
    before = model(pair)
    inject(model, Plan({"0": VPT(2)}))
    with pytest.raises(PlanError, match="must get a tensor first, but gets a tuple"):
        model(pair)
    with disabled(model):
        assert torch.equal(model(pair), before)
