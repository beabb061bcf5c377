"""Frozen weights in codes: their error, gradients, names, refusals, and every method on top of them."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft import (
    LoRA,
    Plan,
    check,
    count,
    dequantize,
    inject,
    load_adapter,
    merge,
    quantize,
    remove,
    save_adapter,
    train_mode,
)
from vispeft.peft.quantization.codes import BLOCK, LEVELS, decode, encode
from vispeft.peft.quantization.maps import QuantizedConv2d, QuantizedLinear

Build = Callable[[], nn.Module]


@torch.no_grad()
def answer(model: nn.Module, images: Tensor) -> Tensor:
    """Return the output with every parameter frozen, by which torch picks kernels (see test_promises.py)."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        result: Tensor = model(images)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return result


def quantized(build: Build, bits: int) -> nn.Module:
    model = build()
    quantize(model, bits, skip=["head", "reader"])
    return model


def test_encode__rounds_rows_to_the_nearest_of_255_values() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    codes, scales = encode(weight, 8)
    error = (decode(codes, scales, 8, weight.shape) - weight).abs()
    assert codes.dtype == torch.int8
    assert (error <= weight.abs().amax(1, keepdim=True) / 254 * 1.0001).all()
    assert (error[2] == 0).all()


@pytest.mark.parametrize("shape", [(6, 40), (3, 5), (4, 3, 3, 3), (64, 64)], ids=str)
def test_encode__gives_every_value_the_nearest_level_of_its_block(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scales = encode(weight, 4)
    found = decode(codes, scales, 4, weight.shape)
    assert codes.numel() == 32 * scales.numel() == 32 * -(-weight.numel() // BLOCK)
    for start in range(0, weight.numel(), BLOCK):
        block = weight.flatten()[start : start + BLOCK]
        levels = torch.tensor(LEVELS) * block.abs().max()
        nearest = levels[(block[:, None] - levels).abs().argmin(1)]
        assert torch.equal(found.flatten()[start : start + BLOCK], nearest)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize__gradients_are_those_of_the_plain_map_with_the_decoded_weights(
    bits: int, build: Build, images: Tensor
) -> None:
    model = quantized(build, bits).double()
    plain = copy.deepcopy(model)
    dequantize(plain)
    assert type(plain.conv) is nn.Conv2d
    assert type(plain.blocks[0].mlp.fc1) is nn.Linear
    grads = []
    for each in (model, plain):
        x = images.double().requires_grad_()
        each(x).square().sum().backward()
        grads.append((x.grad, each.conv.bias.grad, each.blocks[1].attn.qkv.bias.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize__autograd_keeps_no_decoded_weight(bits: int) -> None:
    layer = nn.Sequential(nn.Linear(64, 64))
    quantize(layer, bits)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(2, 64, requires_grad=True))
    assert {tensor.data_ptr() for tensor in kept} == {layer[0].codes.data_ptr(), layer[0].scales.data_ptr()}


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize__every_method_starts_as_the_identity_merges_and_comes_off(
    bits: int, case, build: Build, images: Tensor, shake: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    sites = [site for site in case.pattern.split(" | ") if not site.endswith("weight")]
    if not sites:
        pytest.skip("parameters alone, which are not quantised")
    plan = Plan({" | ".join(sites): case.methods}, ["head.**"])
    model = quantized(build, bits)
    state, before = copy.deepcopy(model.state_dict()), answer(model, images)
    torch.manual_seed(3)
    inject(model, plan)
    check(model, images)
    assert torch.equal(answer(model, images), before) == case.is_identity_at_start
    shake(model)
    save_adapter(model, tmp_path / "adapter.safetensors")
    trained = answer(model, images)
    loaded = quantized(build, bits)
    load_adapter(loaded, tmp_path / "adapter.safetensors")
    torch.testing.assert_close(answer(loaded, images), trained)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state if not key.startswith("head."))
    if case.merges:
        merged = copy.deepcopy(model)
        merge(merged)
        torch.testing.assert_close(answer(merged, images), trained, rtol=1e-5, atol=1e-5)
    remove(model)
    assert list(model.state_dict()) == list(state)


def test_merge__makes_maps_with_deltas_plain_and_leaves_the_others(
    build: Build, images: Tensor, shake: Callable[[nn.Module], None]
) -> None:
    model = quantized(build, 4)
    inject(model, Plan({"blocks.*.mlp.fc1 | conv": LoRA(rank=2)}))
    shake(model)
    merge(model)
    assert type(model.blocks[0].mlp.fc1) is nn.Linear
    assert type(model.conv) is nn.Conv2d
    assert type(model.blocks[0].mlp.fc2) is QuantizedLinear
    assert type(model.grouped) is QuantizedConv2d
    assert list(dict(model.blocks[0].mlp.fc1.named_parameters())) == ["weight", "bias"]


def test_quantize__runs_under_autocast_as_the_plain_map_does(build: Build, images: Tensor) -> None:
    model = quantized(build, 8)
    plain = copy.deepcopy(model)
    dequantize(plain)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(model(images), plain(images))
    assert model.to(torch.bfloat16)(images.bfloat16()).dtype == torch.bfloat16


def test_quantize__skips_patterns_shared_weights_and_subclasses(build: Build) -> None:
    model = build()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    total = count(model).total
    quantize(model, 8, skip=["blocks.*.attn"])
    assert type(model.blocks[0].attn.qkv) is type(model.blocks[0].mlp.fc1) is nn.Linear
    assert type(model.blocks[0].mlp.fc2) is QuantizedLinear
    assert type(model.self_attn.out_proj) is not QuantizedLinear
    assert count(model).total == total


def test_quantize__refuses_other_bits_and_a_model_with_a_plan(build: Build) -> None:
    model = build()
    with pytest.raises(PlanError, match="`bits` must be 8 or 4, but is 2"):
        quantize(model, 2)
    inject(model, Plan({"conv": LoRA(rank=2)}))
    with pytest.raises(PlanError, match="before `inject`"):
        quantize(model)


@pytest.mark.parametrize("plan", [Plan({"blocks.*.mlp.fc1.weight": LoRA(rank=2)}), Plan(train=["blocks"])], ids=str)
def test_inject__refuses_patterns_that_name_codes(plan: Plan, build: Build) -> None:
    with pytest.raises(PlanError, match="is quantised"):
        inject(quantized(build, 8), plan)


def test_inject__trains_the_bias_of_a_quantised_map_and_saves_it_alone(
    build: Build, images: Tensor, train: Callable[[nn.Module, Tensor], None], tmp_path: Path
) -> None:
    model = quantized(build, 8)
    inject(model, Plan(train=["**.fc1.bias"]))
    before = model.blocks[0].mlp.fc1.bias.detach().clone()
    train_mode(model)
    train(model, images)
    assert not torch.equal(model.blocks[0].mlp.fc1.bias, before)
    save_adapter(model, tmp_path / "bias.safetensors")
    load_adapter(quantized(build, 8), tmp_path / "bias.safetensors")


@pytest.mark.parametrize(("there", "here"), [(8, 0), (4, 8), (0, 4)])
def test_load_adapter__refuses_another_quantisation(there: int, here: int, build: Build, tmp_path: Path) -> None:
    model, other = (quantized(build, bits) if bits else build() for bits in (there, here))
    inject(model, Plan({"conv": LoRA(rank=2)}))
    save_adapter(model, tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="quantised"):
        load_adapter(other, tmp_path / "adapter.safetensors")


def test_quantize__gives_the_bias_its_gradient_for_a_single_row() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    quantize(model, 8)
    inject(model, Plan(train=["0.bias"]))
    model(torch.ones(4)).sum().backward()
    assert torch.equal(model[0].bias.grad, torch.ones(3))
