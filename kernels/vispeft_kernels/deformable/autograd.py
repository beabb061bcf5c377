"""Deformable attention as `torch.library` operators, so that `torch.compile`, export and autograd see one node each.

They hold on the CPU the weighted gather-sums of `torch_impl.py`, on a CUDA device Triton's kernels. `shapes` is
[H0, W0, H1, W1, ...]; without a `reference`, `where` and `share` are locations and weights (see `samples.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispeft_kernels.deformable import torch_impl, triton_impl
from vispeft_kernels.deformable.padded_levels import Shapes
from vispeft_kernels.deformable.samples import Samples
from vispeft_kernels.deformable.torch_impl import Gradients
from vispeft_kernels.dispatch import requested
from vispeft_kernels.launch import is_interpreted


def _pairs(shapes: list[int]) -> Shapes:
    return tuple(zip(shapes[::2], shapes[1::2], strict=True))


def _is_triton(value: Tensor) -> bool:
    return value.device.type == "cuda" or (is_interpreted() and requested() == "triton")


@torch.library.custom_op("vispeft::deformable_attention", mutates_args=(), device_types=("cpu", "cuda"))
def deformable_attention_op(
    value: Tensor, shapes: list[int], where: Tensor, share: Tensor, reference: Tensor | None = None
) -> Tensor:
    """[B, Q, heads * dim] in the dtype of value [B, S, heads, dim]."""
    samples, pairs = Samples(where, share, reference), _pairs(shapes)
    if _is_triton(value):
        return triton_impl.forward(value, pairs, samples)
    return torch_impl.forward(value, pairs, *samples.resolve(pairs))


@deformable_attention_op.register_fake
def _(value: Tensor, shapes: list[int], where: Tensor, share: Tensor, reference: Tensor | None = None) -> Tensor:
    return value.new_empty(value.shape[0], where.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("vispeft::deformable_attention_backward", mutates_args=(), device_types=("cpu", "cuda"))
def deformable_attention_backward_op(
    grad: Tensor,
    value: Tensor,
    shapes: list[int],
    where: Tensor,
    share: Tensor,
    needs_value: bool,
    needs_points: bool,
    reference: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for value, where and share; those that are not needed are empty. None for the reference."""
    samples, pairs = Samples(where, share, reference), _pairs(shapes)
    if _is_triton(value):
        grads = triton_impl.backward(grad, value, pairs, samples, needs_value, needs_points)
    else:
        grads = _gather_backward(grad, value, pairs, samples, needs_value, needs_points)
    return grads.value, grads.locations, grads.weights


@deformable_attention_backward_op.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    shapes: list[int],
    where: Tensor,
    share: Tensor,
    needs_value: bool,
    needs_points: bool,
    reference: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape if needs_value else 0),
        where.new_empty(where.shape if needs_points else 0),
        share.new_empty(share.shape if needs_points else 0),
    )


def _gather_backward(
    grad: Tensor, value: Tensor, shapes: Shapes, samples: Samples, needs_value: bool, needs_points: bool
) -> Gradients:
    """By gather-sums; from locations and weights on to offsets and logits by autograd."""
    if samples.reference is None:
        return torch_impl.backward(grad, value, shapes, samples.where, samples.share, needs_value, needs_points)
    with torch.enable_grad():
        leaves = samples.where.detach().requires_grad_(), samples.share.detach().requires_grad_()
        points = Samples(*leaves, samples.reference).resolve(shapes)
    locations, weights = (one.detach() for one in points)
    grads = torch_impl.backward(grad, value, shapes, locations, weights, needs_value, needs_points)
    if not needs_points:
        return Gradients(grads.value, samples.where.new_empty(0), samples.share.new_empty(0))
    return Gradients(grads.value, *torch.autograd.grad(points, leaves, (grads.locations, grads.weights)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, where, share, reference = inputs
    ctx.save_for_backward(value, where, share, reference)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_value, _, needs_where, needs_share = ctx.needs_input_grad[:4]
    value, where, share, reference = ctx.saved_tensors
    grad_value, grad_where, grad_share = deformable_attention_backward_op(
        grad, value, ctx.shapes, where, share, needs_value, needs_where or needs_share, reference
    )
    return (
        grad_value if needs_value else None,
        None,
        grad_where if needs_where else None,
        grad_share if needs_share else None,
        None,
    )


deformable_attention_op.register_autograd(_backward, setup_context=_setup_context)
