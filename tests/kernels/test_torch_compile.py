"""Operators under `torch.compile`, in two cases in which torch gave wrong gradients without an error.

A custom function that changes its input in place, and one that gets the same tensor twice. The first is what our own
functions do without compilation, to save memory.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vispeft_kernels import bottleneck, deformable_attention, lora_add
from vispeft_kernels.adapter import autograd as adapter_autograd
from vispeft_kernels.adapter import bottleneck_add
from vispeft_kernels.adapter.options import AdapterOptions, Maps
from vispeft_kernels.lora import autograd as lora_autograd
from vispeft_kernels.lora import lora_update
from vispeft_kernels.lora.options import LoraOptions

SIZES = {"x": (3, 4, 6), "weight": (6, 6), "bias": (6,), "a": (2, 6), "b": (6, 2), "gain": (6,)}
Function = Callable[[dict[str, Tensor]], Tensor]


def updated(t: dict[str, Tensor]) -> Tensor:
    """The map's own output is overwritten where nothing is compiled."""
    y = F.linear(t["x"], t["weight"], t["bias"])
    return lora_update(y, t["x"], t["weight"], t["bias"], t["a"], t["b"], 0.5)


def updated_and_scaled(t: dict[str, Tensor]) -> Tensor:
    y = F.linear(t["x"], t["weight"], t["bias"])
    return lora_update(y, t["x"], t["weight"], t["bias"], t["a"], t["b"], 0.5, feature_scale=t["gain"])


def updated_by_the_operator(t: dict[str, Tensor]) -> Tensor:
    """As on a GPU, where the compiled graph has the operator in it and not the plain formula."""
    y = F.linear(t["x"], t["weight"], t["bias"]).detach()
    inputs = lora_autograd.Inputs(y, t["x"], t["weight"], t["bias"], t["a"], t["b"])
    return lora_autograd.lora(inputs, LoraOptions(0.5), "torch")


OVERWRITING = {
    "lora_update": updated,
    "lora_update, scaled": updated_and_scaled,
    "vispeft::lora": updated_by_the_operator,
}


def _adapter_by_the_operator(y: Tensor, t: dict[str, Tensor]) -> Tensor:
    maps = Maps(t["a"], t["gain"][:2], t["b"], t["bias"])
    return adapter_autograd.bottleneck_add(y, t["x"], maps, AdapterOptions("gelu", 0.5), "torch")


def _lora_by_the_operator(t: dict[str, Tensor]) -> Tensor:
    inputs = lora_autograd.Inputs(t["x"], t["x"], None, None, t["a"], t["b"])
    return lora_autograd.lora(inputs, LoraOptions(0.5), "torch")


def _sampled_at_its_own_weights(t: dict[str, Tensor]) -> Tensor:
    """Value, locations and weights are the same numbers: 4 pixels, 1 head, 1 level, 1 point."""
    x = t["x"].flatten()
    value, weights = x[:4].view(1, 4, 1, 1), x[:4].view(1, 4, 1, 1, 1)
    return deformable_attention(value, [(2, 2)], x[:8].sigmoid().view(1, 4, 1, 1, 1, 2), weights)


TWICE = {
    "lora_add": lambda t: lora_add(t["x"], t["x"], t["a"], t["b"], 0.5),
    "lora_add, square factors": lambda t: lora_add(t["x"], t["x"], t["weight"], t["weight"], 0.5),
    "vispeft::lora": _lora_by_the_operator,
    "bottleneck": lambda t: bottleneck(t["x"], t["a"], t["gain"][:2], t["b"], t["bias"], scale=0.5),
    "bottleneck_add": lambda t: bottleneck_add(t["x"], t["x"], t["a"], t["gain"][:2], t["b"], t["bias"]),
    "bottleneck_add, square maps": lambda t: bottleneck_add(
        t["x"], t["x"], t["weight"], t["bias"], t["weight"], t["bias"]
    ),
    "vispeft::bottleneck, sequential": lambda t: _adapter_by_the_operator(t["x"], t),
    "vispeft::bottleneck, of a view": lambda t: _adapter_by_the_operator(t["x"].view_as(t["x"]), t),
    "deformable_attention": _sampled_at_its_own_weights,
}


def run(function: Function, one: Callable[[Function], Function]) -> dict[str, Tensor]:
    """Return the output and the gradient of every tensor that has one."""
    torch.manual_seed(0)
    leaves = {name: torch.randn(size, dtype=torch.float64, requires_grad=True) for name, size in SIZES.items()}
    # not leaves: their users must not change them
    output = one(function)({name: tensor * 1.0 for name, tensor in leaves.items()})
    output.square().sum().backward()
    grads = {name: tensor.grad for name, tensor in leaves.items() if tensor.grad is not None}
    return {"output": output.detach(), **grads}


def assert_equal_when_compiled(function: Function) -> None:
    torch._dynamo.reset()
    eager = run(function, lambda it: it)
    compiled = run(function, lambda it: torch.compile(it, backend="aot_eager", fullgraph=True))
    assert compiled.keys() == eager.keys()
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", OVERWRITING)
def test_compile__an_overwritten_input_keeps_all_gradients(name: str) -> None:
    assert_equal_when_compiled(OVERWRITING[name])


@pytest.mark.parametrize("name", TWICE)
def test_compile__a_tensor_that_is_given_twice_keeps_both_gradients(name: str) -> None:
    assert_equal_when_compiled(TWICE[name])
