"""The low-rank update with a scale per feature against the explicit formula, and the memory that it keeps."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from vispeft_kernels.lora import lora_add, lora_update, scaled

# out, in, column_offsets: a map that widens keeps its output, one that narrows recomputes it
SHAPES = {"widening": (9, 5, (0,)), "narrowing": (5, 9, (0,)), "q and v": (9, 5, (0, 6)), "narrow k": (6, 7, (2,))}


def tensors(
    out: int, inputs: int, column_offsets: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """x, weight, bias, a, b (rank 2) and feature_scale."""
    torch.manual_seed(0)
    width = out if column_offsets == (0,) else out // 3
    shapes = (
        (2, 300, inputs),
        (out, inputs),
        (out,),
        (2 * len(column_offsets), inputs),
        (len(column_offsets) * width, 2),
        (out,),
    )
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def updated(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Tensor, **options: object) -> Tensor:
    """`lora_update` on a fresh output."""
    a, b, feature_scale = rest
    y = F.linear(x, weight, bias).detach()
    return lora_update(y, x, weight, bias, a, b, 0.5, feature_scale=feature_scale, **options)  # type: ignore[arg-type]


def explicit(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    feature_scale: Tensor,
    column_offsets: tuple[int, ...],
) -> Tensor:
    """Return the map with the merged weight `g (W + scale * B A)`."""
    merged = weight.clone()
    width = b.shape[0] // len(column_offsets)
    for first, a_part, b_part in zip(
        column_offsets, a.chunk(len(column_offsets)), b.chunk(len(column_offsets)), strict=True
    ):
        merged[first : first + width] += 0.5 * b_part @ a_part
    return F.linear(x, feature_scale[:, None] * merged, bias)


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lora_update__with_a_feature_scale_is_the_explicit_formula_in_values_and_every_gradient(
    shape: tuple[int, int, tuple[int, ...]], has_bias: bool, is_frozen: bool
) -> None:
    x, weight, bias, *rest = tensors(*shape)
    base = (weight, bias) if has_bias else (weight,)
    for tensor in base:
        tensor.requires_grad_(not is_frozen)
    inputs = (x, *rest) if is_frozen else (x, *base, *rest)
    offset = bias if has_bias else None
    result, wanted = (
        updated(x, weight, offset, *rest, column_offsets=shape[2]),
        explicit(x, weight, offset, *rest, shape[2]),
    )
    torch.testing.assert_close(result, wanted)
    grad = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(result, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lora_update__with_a_feature_scale_of_one_and_no_update_is_y_to_the_bit(
    shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype
) -> None:
    x, weight, bias, a, b, feature_scale = tensors(*shape, dtype=dtype)
    y = F.linear(x, weight, bias)
    ones = torch.ones_like(feature_scale, dtype=torch.float32)
    assert torch.equal(updated(x, weight, bias, a, torch.zeros_like(b), ones, column_offsets=shape[2]), y)
    assert torch.equal(scaled(y, ones, bias), y)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("write", [F.relu_, lambda y: y.view(-1)[3:].mul_(2)], ids=["all", "a view"])
def test_lora_update__with_a_feature_scale_may_be_followed_by_an_operation_in_place(
    shape: tuple[int, int, tuple[int, ...]], write: Callable[[Tensor], Tensor]
) -> None:
    x, weight, bias, *rest = tensors(*shape)
    result, wanted = (
        updated(x, weight, bias, *rest, column_offsets=shape[2]),
        explicit(x, weight, bias, *rest, shape[2]),
    )
    wanted = wanted.clone()
    for ours, theirs in zip(
        torch.autograd.grad(write(result).sum(), (x, *rest)),
        torch.autograd.grad(write(wanted).sum(), (x, *rest)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lora_update__with_a_feature_scale_recomputes_the_mask_of_dropout(
    shape: tuple[int, int, tuple[int, ...]],
) -> None:
    x, weight, bias, *rest = tensors(*shape)
    torch.manual_seed(1)
    result = updated(x, weight, bias, *rest, column_offsets=shape[2], dropout=0.5)
    torch.manual_seed(1)
    z = lora_add(F.linear(x, weight, bias), x, *rest[:2], 0.5, column_offsets=shape[2], dropout=0.5)
    wanted = scaled(z, rest[2], bias)
    torch.testing.assert_close(result, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(result.square().sum(), (x, *rest)),
        torch.autograd.grad(wanted.square().sum(), (x, *rest)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "copies"), [("widening", 1), ("narrowing", 0)])
def test_lora_update__with_a_feature_scale_keeps_an_output_only_where_the_map_widens(name: str, copies: int) -> None:
    x, weight, bias, *rest = tensors(*SHAPES[name])
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = updated(x, weight, bias, *rest)
    assert (result.untyped_storage().data_ptr() in kept) == bool(copies)
    # x, weight, bias, a, b and feature_scale, and h of rank size
    assert len(kept) == 7 + copies


@pytest.mark.parametrize("name", ["widening", "narrowing"])
def test_lora_update__with_a_feature_scale_frees_its_output_with_the_graph(name: str) -> None:
    x, weight, bias, *rest = tensors(*SHAPES[name])
    result = updated(x, weight, bias, *rest)
    memory = StorageWeakRef(result.untyped_storage())
    del result
    assert memory.expired()


def test_lora_update__a_feature_scale_of_zero_leaves_every_gradient_finite() -> None:
    x, weight, bias, a, b, feature_scale = tensors(*SHAPES["widening"])
    feature_scale.data[2] = 0
    result = updated(x, weight, bias, a, b, feature_scale)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(result.sum(), (x, a, b, feature_scale)))


@pytest.mark.parametrize("name", ["widening", "narrowing"])
def test_lora_update__with_a_feature_scale_in_bfloat16_is_near_float64(name: str) -> None:
    x, weight, bias, a, b, feature_scale = tensors(*SHAPES[name])
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in (x, weight, bias, a, b)]
    single = feature_scale.detach().float().requires_grad_()
    result = updated(*half, single)
    assert result.dtype == torch.bfloat16
    wanted = explicit(x, weight, bias, a, b, feature_scale, (0,))
    torch.testing.assert_close(result.double(), wanted, rtol=0.05, atol=0.1)
    ours = torch.autograd.grad(result, (half[0], half[3], half[4], single), torch.ones_like(result))
    theirs = torch.autograd.grad(wanted, (x, a, b, feature_scale), torch.ones_like(wanted))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.linalg.vector_norm(mine.double() - other) < 0.03 * torch.linalg.vector_norm(other)
