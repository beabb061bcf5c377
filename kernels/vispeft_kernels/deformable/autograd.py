"""Deformable attention as `torch.library` operators, so that `torch.compile`, export and autograd see one node each.

They run the weighted gather-sums of `torch_impl.py` on the CPU and Triton's kernels on a CUDA device. `shapes` is
[H0, W0, H1, W1, ...]; with `reference_points`, offsets and logits take the place of locations and weights (see
`samples.py`).
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
    value: Tensor,
    shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    reference_points: Tensor | None,
) -> Tensor:
    """Return [B, Q, heads * dim] in the dtype of value [B, S, heads, dim]."""
    samples, pairs = Samples(sampling_locations, attention_weights, reference_points), _pairs(shapes)
    if _is_triton(value):
        return triton_impl.forward(value, pairs, samples)
    return torch_impl.forward(value, pairs, *samples.resolve(pairs))


@deformable_attention_op.register_fake
def _(value: Tensor, shapes: list[int], sampling_locations: Tensor, *_: Any) -> Tensor:
    return value.new_empty(value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("vispeft::deformable_attention_backward", mutates_args=(), device_types=("cpu", "cuda"))
def deformable_attention_backward_op(
    grad: Tensor,
    value: Tensor,
    shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    reference_points: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights; empty where not needed. The reference points have none.

    needs: true for value, and for locations and weights together, where a gradient is needed
    """
    samples, pairs = Samples(sampling_locations, attention_weights, reference_points), _pairs(shapes)
    needs_value, needs_points = needs
    backward = triton_impl.backward if _is_triton(value) else _backward_in_torch
    grads = backward(grad, value, pairs, samples, needs_value, needs_points)
    return grads.value, grads.locations, grads.weights


@deformable_attention_backward_op.register_fake
def _(grad: Tensor, value: Tensor, shapes: list[int], *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    locations, weights, _, (needs_value, needs_points) = args
    return (
        value.new_empty(value.shape if needs_value else 0),
        locations.new_empty(locations.shape if needs_points else 0),
        weights.new_empty(weights.shape if needs_points else 0),
    )


def _backward_in_torch(
    grad: Tensor, value: Tensor, shapes: Shapes, samples: Samples, needs_value: bool, needs_points: bool
) -> Gradients:
    """Return gradients by gather-sums; autograd continues from locations and weights to offsets and logits."""
    given = samples.sampling_locations, samples.attention_weights
    if samples.reference_points is None:
        return torch_impl.backward(grad, value, shapes, *given, needs_value, needs_points)
    with torch.enable_grad():
        locations, weights = (one.detach().requires_grad_() for one in given)
        points = Samples(locations, weights, samples.reference_points).resolve(shapes)
    grads = torch_impl.backward(grad, value, shapes, points[0].detach(), points[1].detach(), needs_value, needs_points)
    if not needs_points:
        return Gradients(grads.value, *(one.new_empty(0) for one in given))
    return Gradients(grads.value, *torch.autograd.grad(points, (locations, weights), (grads.locations, grads.weights)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, *samples = inputs
    ctx.save_for_backward(value, *samples)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, *samples = ctx.saved_tensors
    needs_value, _, needs_locations, needs_weights = ctx.needs_input_grad[:4]
    needs = [needs_value, needs_locations or needs_weights]
    grad_value, grad_locations, grad_weights = deformable_attention_backward_op(
        grad, value, ctx.shapes, *samples, needs
    )
    return (
        grad_value if needs_value else None,
        None,
        grad_locations if needs_locations else None,
        grad_weights if needs_weights else None,
        None,
    )


deformable_attention_op.register_autograd(_backward, setup_context=_setup_context)
