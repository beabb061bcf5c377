"""DoRA against the paper's formula written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from vispeft.peft import DoRA, Plan, inject
from vispeft.peft.methods.dora import feature_scales

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]

WEIGHTS = {
    "blocks.0.mlp.fc1": "blocks.0.mlp.fc1.weight",
    "blocks.0.mlp.fc2": "blocks.0.mlp.fc2.weight",
    "blocks.1.attn.proj": "blocks.1.attn.proj.weight",
    "conv": "conv.weight",
    "self_attn.in_proj_weight": "self_attn.in_proj_weight",
    "reader.weight": "reader.weight",
}


def decomposed(weight: Tensor, a: Tensor, b: Tensor, m: Tensor, scale: float) -> Tensor:
    """`m V / ||V||`, the length of V without a gradient; here m is what the lengths have grown by."""
    flat = weight.flatten(1)
    direction = flat + scale * b.flatten(1) @ a.flatten(1)
    magnitude = flat.norm(dim=1) + m
    return (magnitude / direction.detach().norm(dim=1)).unsqueeze(1).mul(direction).view(weight.shape)


@pytest.mark.parametrize("site", WEIGHTS)
def test_promise_2__dora_gradients_are_those_of_the_paper(
    site: str, build: Build, images: Tensor, shake: Shake
) -> None:
    base, model = build().double(), build().double()
    inject(model, Plan({site: DoRA(rank=2, alpha=6)}))
    shake(model)
    factors = {name.rpartition(".")[2]: each for name, each in model.named_parameters() if ".dora." in name}
    explicit = decomposed(base.get_parameter(WEIGHTS[site]).detach(), **factors, scale=3.0)
    x = images.double().requires_grad_()
    inputs = (x, *factors.values())
    ours = torch.autograd.grad(model(x).square().sum(), inputs)
    wanted = torch.autograd.grad(functional_call(base, {WEIGHTS[site]: explicit}, x).square().sum(), inputs)
    assert set(factors) == {"a", "b", "m"}
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def factors_of(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight [9, 5], and a, b (rank 2) and m for so many of its rows."""
    torch.manual_seed(0)
    shapes = (9, 5), (2, 5), (rows, 2), (rows,)
    weight, a, b, m = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return weight, a, b, m


def test_gains__are_one_where_there_is_no_part() -> None:
    weight, a, b, m = factors_of(3)
    result = feature_scales(weight, a, b, m, 0.5, [slice(3, 6)])
    wanted = (weight[3:6].norm(dim=1) + m) / (weight[3:6] + 0.5 * b @ a).norm(dim=1)
    torch.testing.assert_close(result[3:6], wanted)
    assert torch.equal(result[[0, 1, 2, 6, 7, 8]], torch.ones(6, dtype=torch.float64))


def test_gains__of_a_row_of_zeros_and_of_one_that_vanishes_are_finite() -> None:
    weight, a, b, m = factors_of(9)
    weight[2] = 0
    weight[4] = -(b @ a)[4]
    result = feature_scales(weight, a, b, m, 1.0, [slice(0, 9)])
    assert result.isfinite().all()
    torch.testing.assert_close(result[2], 1 + m[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gains__are_one_to_the_bit_at_the_start(dtype: torch.dtype) -> None:
    weight, a, b, m = factors_of(9, torch.float32)
    result = feature_scales(weight.to(dtype), a, 0 * b, 0 * m, 2.0, [slice(0, 9)])
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.ones(9))


def test_gains__under_autocast_are_in_full_precision() -> None:
    weight, a, b, m = factors_of(9, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = feature_scales(weight, a, b, m, 2.0, [slice(0, 9)])
    assert torch.equal(inside, feature_scales(weight, a, b, m, 2.0, [slice(0, 9)]))
