"""The gather-sum as `torch.library` operators, so that `torch.compile`, export and autograd see one node each."""

from typing import Any

import torch
from torch import Tensor

from vispeft_kernels.deformable import gather
from vispeft_kernels.deformable.atlas import Shapes


def _pairs(shapes: list[int]) -> Shapes:
    return tuple(zip(shapes[::2], shapes[1::2], strict=True))


@torch.library.custom_op("vispeft::deformable_attention", mutates_args=(), device_types="cpu")
def deformable_attention_op(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, heads * dim] of contiguous inputs; `shapes` is [H0, W0, H1, W1, ...]."""
    return gather.forward(value, _pairs(shapes), locations, weights)


@deformable_attention_op.register_fake
def _(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("vispeft::deformable_attention_backward", mutates_args=(), device_types="cpu")
def deformable_attention_backward_op(
    grad: Tensor,
    value: Tensor,
    shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
    needs_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for value, locations and weights; those that are not needed are empty."""
    grads = gather.backward(grad, value, _pairs(shapes), locations, weights, needs_value, needs_points)
    return grads.value, grads.locations, grads.weights


@deformable_attention_backward_op.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
    needs_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape if needs_value else 0),
        locations.new_empty(locations.shape if needs_points else 0),
        weights.new_empty(weights.shape if needs_points else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    needs_value, _, needs_locations, needs_weights = ctx.needs_input_grad
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = deformable_attention_backward_op(
        grad, value, ctx.shapes, locations, weights, needs_value, needs_locations or needs_weights
    )
    return (
        grad_value if needs_value else None,
        None,
        grad_locations if needs_locations else None,
        grad_weights if needs_weights else None,
    )


deformable_attention_op.register_autograd(_backward, setup_context=_setup_context)
