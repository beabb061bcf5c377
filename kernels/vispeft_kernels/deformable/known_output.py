"""Deformable attention whose output was computed by other code: autograd keeps its inputs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispeft_kernels.deformable.autograd import deformable_attention_backward_op
from vispeft_kernels.deformable.padded_levels import Shapes
from vispeft_kernels.deformable.reference import deformable_attention_reference


class KnownOutput(torch.autograd.Function):
    """The output as it is, with the gradients of `deformable_attention`. It can be differentiated twice."""

    @staticmethod
    def forward(
        output: Tensor,
        value: Tensor,
        shapes: Shapes,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        is_reference: bool,
    ) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, value, ctx.shapes, locations, weights, ctx.is_reference = inputs
        ctx.save_for_backward(value, locations, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[index] for index in (1, 3, 4)]
        # grad mode is on where the gradient is to be differentiated again
        differentiate = _from_reference if ctx.is_reference or torch.is_grad_enabled() else _from_operator
        value, locations, weights = differentiate(grad, ctx.shapes, ctx.saved_tensors, needed)
        return None, value, None, locations, weights, None


def _from_operator(
    grad: Tensor, shapes: Shapes, tensors: tuple[Tensor, ...], needed: list[bool]
) -> list[Tensor | None]:
    """Return the gradients of value, locations and weights, None where not needed."""
    value, locations, weights = tensors
    flat = [size for shape in shapes for size in shape]
    needs = [needed[0], needed[1] or needed[2]]
    grads = deformable_attention_backward_op(grad, value, flat, locations, weights, None, needs)
    return [each if is_needed else None for each, is_needed in zip(grads, needed, strict=True)]


def _from_reference(
    grad: Tensor, shapes: Shapes, tensors: tuple[Tensor, ...], needed: list[bool]
) -> list[Tensor | None]:
    """Return the same by autograd, through the reference."""
    is_differentiated = torch.is_grad_enabled()
    with torch.enable_grad():
        if not is_differentiated:
            tensors = tuple(each.detach().requires_grad_() for each in tensors)
        value, locations, weights = tensors
        output = deformable_attention_reference(value, shapes, locations, weights)
        inputs = [each for each, is_needed in zip(tensors, needed, strict=True) if is_needed]
        grads = iter(torch.autograd.grad(output, inputs, grad.to(output.dtype), create_graph=is_differentiated))
    return [next(grads) if is_needed else None for is_needed in needed]
