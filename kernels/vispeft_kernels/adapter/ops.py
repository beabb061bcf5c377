"""The bottleneck adapter as `torch.library` operators, which `torch.compile` and export see as one node each.

They hold on the CPU what `torch_impl.py` does, on a CUDA device Triton's kernels. Without a `y` the stream is x itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispeft_kernels.adapter import torch_impl, triton_impl
from vispeft_kernels.adapter.torch_impl import Maps
from vispeft_kernels.launch import is_interpreted


def bottleneck_add(y: Tensor, x: Tensor, maps: Maps, activation: str, scale: float) -> Tensor:
    """`y + scale * up(act(down(x)))`, in y's precision; y may be x itself."""
    out: Tensor = bottleneck_op(None if y is x else y, x.to(y.dtype), *maps.to(y.dtype), activation, scale)[0]
    return out


def _steps_for(x: Tensor) -> Any:
    return triton_impl if x.device.type == "cuda" or is_interpreted() else torch_impl


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


@torch.library.custom_op("vispeft::bottleneck", mutates_args=(), device_types=("cpu", "cuda"))
def bottleneck_op(
    y: Tensor | None,
    x: Tensor,
    down_w: Tensor,
    down_b: Tensor,
    up_w: Tensor,
    up_b: Tensor,
    activation: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The outcome [..., out] and z [M, width]."""
    stream = x if y is None else y
    with torch.autocast(x.device.type, enabled=False):
        maps = Maps(down_w, down_b, up_w, up_b)
        out, z = _steps_for(x).forward(_flat(stream), _flat(x), maps, activation, scale)
    return out.view(stream.shape), z


@bottleneck_op.register_fake
def _(
    y: Tensor | None,
    x: Tensor,
    down_w: Tensor,
    down_b: Tensor,
    up_w: Tensor,
    up_b: Tensor,
    activation: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return x.new_empty((x if y is None else y).shape), x.new_empty(x.shape[:-1].numel(), down_w.shape[0])


@torch.library.custom_op("vispeft::bottleneck_backward", mutates_args=(), device_types=("cpu", "cuda"))
def bottleneck_backward_op(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    down_w: Tensor,
    up_w: Tensor,
    activation: str,
    scale: float,
    is_sequential: bool,
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (empty where not needed), down_w, down_b, up_w and up_b."""
    with torch.autocast(x.device.type, enabled=False):
        grads = _steps_for(x).backward(
            _flat(grad), _flat(x), z, down_w, up_w, activation, scale, is_sequential, needs_x
        )
    grad_x = x.new_empty(0) if grads.x is None else grads.x.view(x.shape)
    down, up = (grads.down_w, grads.down_b), (grads.up_w, grads.up_b)
    return grad_x, *(one.to(x.dtype) for one in down), *(one.to(x.dtype).contiguous() for one in up)


@bottleneck_backward_op.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    down_w: Tensor,
    up_w: Tensor,
    activation: str,
    scale: float,
    is_sequential: bool,
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    width, outputs = down_w.shape[0], up_w.shape[0]
    maps = x.new_empty(down_w.shape), x.new_empty(width), x.new_empty(up_w.shape), x.new_empty(outputs)
    return x.new_empty(x.shape if needs_x else 0), *maps


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y, x, down_w, _, up_w, _, ctx.activation, ctx.scale = inputs
    ctx.is_sequential = y is None
    ctx.save_for_backward(x, output[1], down_w, up_w)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, z, down_w, up_w = ctx.saved_tensors
    needs_x = ctx.needs_input_grad[1]
    grad_x, *maps = bottleneck_backward_op(
        grad, x, z, down_w, up_w, ctx.activation, ctx.scale, ctx.is_sequential, needs_x
    )
    return None if ctx.is_sequential else grad, grad_x if needs_x else None, *maps, None, None


bottleneck_op.register_autograd(_backward, setup_context=_setup_context)
