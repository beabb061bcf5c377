"""Frozen maps that are bypassed: one kernel computes the output with the update. Here by its plain formula."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from vispeft_kernels import lora_linear

from vispeft.peft import IA3, LoRA, Method, Plan, disabled, inject, train_mode
from vispeft.peft.hooks import SiteHooks
from vispeft.peft.methods import fused_linear

calls: list[tuple[int, ...]] = []


@pytest.fixture(autouse=True)
def always_fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One kernel at every site that allows it; `calls` gets the shapes of its inputs."""

    def spy(x: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append(tuple(x.shape))
        return lora_linear(x, *args, **options)

    monkeypatch.setattr(fused_linear, "is_fused", lambda *_, **__: True)
    monkeypatch.setattr(fused_linear, "lora_linear", spy)
    calls.clear()
    yield
    calls.clear()


def site(*methods: Method) -> nn.Sequential:
    """A norm and a map with deltas none of which is zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6)).double()
    inject(model, Plan({"1": methods or LoRA(2)}))
    train_mode(model)
    for parameter in model[1].parameters():
        nn.init.normal_(parameter)
    return model


def explicit(model: nn.Sequential, x: Tensor) -> Tensor:
    lora = model[1].lora
    return nn.functional.linear(model[0](x), model[1].weight + lora.scale * lora.b @ lora.a, model[1].bias)


def inputs() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def hooks_of(model: nn.Sequential) -> SiteHooks:
    hooks: SiteHooks = next(iter(model[1]._forward_hooks.values())).__self__
    return hooks


def test_fused_forward__has_the_output_and_gradients_of_the_merged_weight() -> None:
    model, x = site(), inputs()
    wanted_from = [x, model[1].lora.a, model[1].lora.b]
    y, wanted = model(x), explicit(model, x)
    assert calls == [(3, 4)]
    torch.testing.assert_close(y, wanted)
    ours = torch.autograd.grad(y.square().sum(), wanted_from)
    torch.testing.assert_close(ours, torch.autograd.grad(wanted.square().sum(), wanted_from))
    assert len(hooks_of(model).bypassed_inputs) == 0


def test_bypass_base__calls_the_map_with_no_rows_and_no_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = site(), []
    linear = nn.functional.linear

    def spy(x: Tensor, *args: Any) -> Tensor:
        seen.append((tuple(x.shape), dict(vars(x))))
        return linear(x, *args)

    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", spy)
        y = model(inputs())
    assert seen[0] == ((0, 4), {})
    assert not vars(y)


def test_take__ends_the_entry_though_autograd_may_keep_the_empty_tensor() -> None:
    model, x = site(), inputs()
    bypassed = hooks_of(model).bypassed_inputs
    args = bypassed.bypass_base(model[1], (x,))
    assert len(bypassed) == 1
    assert bypassed.take(args) is x
    assert bypassed.take(args) is None
    assert len(bypassed) == 0


def test_fused_forward__runs_the_other_deltas_after_it() -> None:
    model, x = site(LoRA(2), IA3()), inputs()
    y = model(x)
    assert calls
    torch.testing.assert_close(y, explicit(model, x) * model[1].ia3.gain)


@pytest.mark.parametrize("kind", ["pre-hook", "hook"])
@pytest.mark.parametrize("prepend", [False, True])
def test_bypass_base__is_not_done_where_another_hook_could_see_it(kind: str, prepend: bool) -> None:
    model, x, rows = site(), inputs(), []
    register = model[1].register_forward_pre_hook if kind == "pre-hook" else model[1].register_forward_hook
    handle = register(lambda module, args, *_: rows.append(args[0].shape[0]), prepend=prepend)
    torch.testing.assert_close(model(x), explicit(model, x))
    assert (rows, calls) == ([3], [])
    handle.remove()
    model(x)
    assert calls == [(3, 4)]


def test_bypass_base__is_not_done_without_an_active_update_or_for_a_keyword() -> None:
    model, x = site(), inputs()
    with disabled(model):
        torch.testing.assert_close(model(x), nn.functional.linear(model[0](x), model[1].weight, model[1].bias))
    torch.testing.assert_close(model[1](input=model[0](x)), explicit(model, x))
    assert not calls


def test_bypass_base__leaves_no_entry_when_the_map_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = site(), inputs()

    def fail(module: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            model(x)
    assert len(hooks_of(model).bypassed_inputs) == 0
    torch.testing.assert_close(model(x), explicit(model, x))


def test_bypass_base__may_be_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = site(), inputs()
    linear, inner = nn.functional.linear, []

    def nested(rows: Tensor, *args: Any) -> Tensor:
        if not inner:
            inner.append(None)
            inner[0] = model(2 * x)
        return linear(rows, *args)

    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", nested)
        outer = model(x)
    assert len(calls) == 2
    torch.testing.assert_close(outer, explicit(model, x))
    torch.testing.assert_close(inner[0], explicit(model, 2 * x))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_fused_forward__has_the_same_gradients_under_checkpointing(use_reentrant: bool) -> None:
    model = site()
    found = []
    for call in (lambda x: model(x), lambda x: checkpoint(model, x, use_reentrant=use_reentrant)):
        x = inputs()
        model.zero_grad()
        call(x).square().sum().backward()
        found.append([x.grad, model[1].lora.a.grad.clone(), model[1].lora.b.grad.clone()])
    assert len(calls) == 3
    torch.testing.assert_close(found[1], found[0])


def test_fused_forward__of_a_shared_map_and_of_a_copy() -> None:
    model, x = site(), inputs()
    model.extend([nn.Linear(6, 4).double(), model[0], model[1]])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model[1].lora.a.zero_()
    between = twin[2](explicit(twin, x))
    torch.testing.assert_close(twin(x), explicit(twin, between))
    assert calls == [(3, 4), (3, 4)]
    assert hooks_of(twin) is not hooks_of(model)
