"""The promises of the design, over every method and every kind of site."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft import METHODS, Ladder, check, disabled, inject, load_adapter, merge, remove, save_adapter, train_mode
from vispeft.peft.inject import attached

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]
Train = Callable[[nn.Module, Tensor], None]


@torch.no_grad()
def answer(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's output without gradients and with every parameter frozen for this pass.

    By what is frozen, nn.MultiheadAttention picks its kernel and torch.matmul picks one or several products for inputs
    that are not contiguous. Where those two are not equal to the bit (on AMD), freezing alone changes the last bits.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        result: Tensor = model(images)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return result


def assert_same(one: Tensor, other: Tensor) -> None:
    """Assert equal bits, which needs arithmetic that does not depend on addresses: see tests/conftest.py."""
    assert torch.equal(one, other)


def assert_near(one: Tensor, other: Tensor) -> None:
    """Assert equality but for rounding."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def differ(one: Tensor, other: Tensor) -> bool:
    """Tell whether outputs differ by far more than rounding."""
    return float((one - other).abs().max()) > 1e-3


def test_cases__have_every_method(cases) -> None:
    methods = [case.methods if isinstance(case.methods, tuple) else (case.methods,) for case in cases]
    assert {method.name for each in methods for method in each} == METHODS.keys()


def test_cases__merge_where_all_their_methods_do(cases) -> None:
    for case in cases:
        methods = case.methods if isinstance(case.methods, tuple) else (case.methods,)
        assert all(method.merges for method in methods) == case.merges


def test_promise_1__outputs_are_bit_identical_at_the_start_or_the_method_declares_it(
    case, build: Build, images: Tensor
) -> None:
    model = build()
    before = answer(model, images)
    inject(model, case.plan)
    check(model, images)
    assert torch.equal(answer(model, images), before) == case.is_identity_at_start
    train_mode(model)
    assert torch.equal(answer(model, images), before) == case.is_identity_at_start


def test_promise_2__training_leaves_every_base_tensor_as_it_was(
    case, build: Build, images: Tensor, train: Train
) -> None:
    model = build()
    base = {key: value.clone() for key, value in model.state_dict().items()}
    inject(model, case.plan)
    before = answer(model, images)
    train_mode(model)
    train(model, images)
    after = model.state_dict()
    assert base.keys() <= after.keys()
    assert all(torch.equal(after[key], base[key]) for key in base if not key.startswith("head."))
    added = {key for key in after if key not in base}
    assert added == {key for key in after if key.startswith(tuple(f"{item.key}." for item in attached(model)))}
    assert differ(answer(model.eval(), images), before)


def test_promise_3__merged_equals_unmerged(case, build: Build, images: Tensor, shake: Shake) -> None:
    model = build()
    keys = list(model.state_dict())
    inject(model, case.plan)
    shake(model)
    unmerged = answer(model, images)
    if not case.merges:
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(PlanError, match="do not merge"):
            merge(model)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert_same(answer(model, images), unmerged)
        return
    merge(model)
    assert list(model.state_dict()) == keys
    assert not attached(model)
    assert_near(answer(model, images), unmerged)
    assert differ(unmerged, answer(build(), images))


def test_promise_3__remove_gives_back_the_original(case, build: Build, images: Tensor, shake: Shake) -> None:
    model = build()
    model.conv.weight.requires_grad_(False)
    before, keys = answer(model, images), list(model.state_dict())
    state = copy.deepcopy(model.state_dict())
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    inject(model, case.plan)
    head = [parameter.detach().clone() for parameter in model.head.parameters()]
    shake(model)
    trained = [parameter.detach().clone() for parameter in model.head.parameters()]
    remove(model)
    assert list(model.state_dict()) == keys
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert not any(module._forward_hooks or module._state_dict_hooks for module in model.modules())
    assert all(torch.equal(new, old) for new, old in zip(model.head.parameters(), trained, strict=True))
    with torch.no_grad():
        for parameter, old in zip(model.head.parameters(), head, strict=True):
            parameter.copy_(old)
    assert_same(answer(model, images), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {type(module) for module in model.modules()} == {type(module) for module in build().modules()}


def test_disabled__is_the_base_and_ends_with_the_block(case, build: Build, images: Tensor, shake: Shake) -> None:
    model = build()
    inject(model, case.plan)
    with torch.no_grad():
        model.head.requires_grad_(False)
        shake(model)
    adapted = answer(model, images)
    with disabled(model):
        assert_same(answer(model, images), answer(build(), images))
    assert_same(answer(model, images), adapted)
    assert differ(adapted, answer(build(), images))


def test_promise_4__a_file_restores_everything_that_was_trained(
    case, build: Build, images: Tensor, train: Train, tmp_path: Path
) -> None:
    model = build()
    inject(model, case.plan)
    train_mode(model)
    train(model, images)
    save_adapter(model, tmp_path / "adapter.safetensors", metadata={"classes": ["a", "b"]})
    fresh = build()
    file = load_adapter(fresh, tmp_path / "adapter.safetensors")
    assert file.metadata == {"classes": ["a", "b"]}
    assert_same(answer(fresh, images), answer(model.eval(), images))
    assert differ(answer(fresh, images), answer(build(), images))
    state = fresh.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_promise_4__a_file_refuses_another_base_and_leaves_it_alone(case, build: Build, tmp_path: Path) -> None:
    model, other = build(), build()
    inject(model, case.plan)
    save_adapter(model, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        other.blocks[1].norm2.bias[3] += 1e-6
    with pytest.raises(CheckpointError, match=r"was trained on a Net with fingerprint \w{12}, but this model is a Net"):
        load_adapter(other, tmp_path / "adapter.safetensors")
    assert list(other.state_dict()) == list(build().state_dict())


def test_deepcopy__gives_an_independent_model(case, build: Build, images: Tensor, shake: Shake) -> None:
    model = build()
    inject(model, case.plan)
    before = answer(model, images)
    twin = copy.deepcopy(model)
    shake(twin)
    assert_same(answer(model, images), before)
    adapted = answer(twin, images)
    assert differ(adapted, answer(build(), images))
    remove(model)
    assert_same(answer(twin, images), adapted)
    assert_same(answer(model, images), answer(build(), images))
    remove(twin)
    assert list(twin.state_dict()) == list(model.state_dict())


def test_load_state_dict__takes_the_base_and_its_own_dictionary(
    case, build: Build, images: Tensor, shake: Shake
) -> None:
    model, twin = build(), build()
    inject(model, case.plan)
    inject(twin, case.plan)
    shake(model)
    twin.load_state_dict(model.state_dict())
    assert_same(answer(twin, images), answer(model, images))
    assert differ(answer(twin, images), answer(build(), images))
    result = twin.load_state_dict(build().state_dict(), strict=False)
    assert result.unexpected_keys == []
    deltas = twin.state_dict().keys() - build().state_dict().keys()
    assert {outer(key) for key in result.missing_keys} == deltas


def outer(key: str) -> str:
    """A tensor's name in the state dict, from the one that torch reports of a parametrized module."""
    return re.sub(r"parametrizations\.(\w+)\.0\.", r"\1.", key)


def test_outputs_of_sites__may_be_changed_in_place_or_are_refused(
    case, build: Build, images: Tensor, train: Train
) -> None:
    def change_in_place(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        y = output if isinstance(output, Tensor) else output[0]
        y[..., :2] += 1
        y.mul_(0.5)

    model = build()
    inject(model, case.plan)
    sites = {item.site for item in attached(model)} & dict(model.named_modules()).keys()
    for site in sites:
        model.get_submodule(site).register_forward_hook(change_in_place)
    train_mode(model)
    methods = [item.delta.method for item in attached(model)]
    # a ladder whose last site alone has an output of its own reads the outputs of the others later
    if any(isinstance(method, Ladder) and method.outputs == "last" for method in methods):
        with pytest.raises(PlanError, match="was changed in place after the block"):
            model(images)
    else:
        train(model, images)
