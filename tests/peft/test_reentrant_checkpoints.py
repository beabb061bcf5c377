"""Reentrant activation checkpointing of layers like those of transformers."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vispeft.peft import LoRA, Plan, inject, remove, train_mode


class Layer(nn.Module):
    """A layer that checkpoints its own `forward`, with attributes as in `transformers.modeling_layers`."""

    gradient_checkpointing = False

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            y: Tensor = self.fc(x).tanh()
            return y

        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            y: Tensor = self._gradient_checkpointing_func(run, x)
            return y
        return run(x)


def injected(plan: Plan, options: dict[str, Any] | None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(Layer(), Layer())
    inject(model, plan)
    for layer in model:
        if options is not None:
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, partial(checkpoint, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    train_mode(model)
    return model


def gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize(
    "plan", [Plan({"*.fc": LoRA(rank=2)}), Plan(train=["**.bias"])], ids=["deltas", "trained in full"]
)
def test_checkpoint__gives_the_gradients_of_a_pass_without_it(plan: Plan, use_reentrant: bool) -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    plain = gradients(injected(plan, None), x)
    assert all(grad is not None for grad in plain)
    torch.testing.assert_close(gradients(injected(plan, {"use_reentrant": use_reentrant}), x), plain)


def test_checkpoint__leaves_the_input_alone() -> None:
    model = injected(Plan({"*.fc": LoRA(rank=2)}), {"use_reentrant": True})
    x = torch.randn(3, 6)
    gradients(model, x)
    assert not x.requires_grad
    assert x.grad is None
    remove(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
