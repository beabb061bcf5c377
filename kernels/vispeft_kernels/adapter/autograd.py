"""The bottleneck adapter with a hand-written backward pass: the default on every device.

Kept for backward: x, which is the frozen map's output and kept by nobody else, and z = down(x) of bottleneck size; the
activation is taken again. Nothing of the output's size is made beside the output.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.adapter.torch_impl import Gradients, Maps


class Steps(Protocol):
    """What `torch_impl.py` does in torch and `triton_impl.py` in Triton."""

    def forward(self, y: Tensor, x: Tensor, maps: Maps, activation: str, scale: float) -> tuple[Tensor, Tensor]:
        """The outcome and z."""

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        z: Tensor,
        down_w: Tensor,
        up_w: Tensor,
        activation: str,
        scale: float,
        is_sequential: bool,
        needs_x: bool,
    ) -> Gradients:
        """Gradients of x and the maps."""


def bottleneck_add(y: Tensor, x: Tensor, maps: Maps, activation: str, scale: float, steps: Steps) -> Tensor:
    """`y + scale * up(act(down(x)))`; y may be x itself."""
    stream = None if y is x else y
    result: Tensor = _Bottleneck.apply(stream, x, *maps, activation, scale, steps)
    return result


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor | None,
        x: Tensor,
        down_w: Tensor,
        down_b: Tensor,
        up_w: Tensor,
        up_b: Tensor,
        activation: str,
        scale: float,
        steps: Steps,
    ) -> Tensor:
        stream = x if y is None else y
        kept_x = x.to(stream.dtype)
        with torch.autocast(x.device.type, enabled=False):
            rows, flat = kept_x.reshape(-1, x.shape[-1]), stream.reshape(-1, stream.shape[-1])
            maps = Maps(down_w, down_b, up_w, up_b).to(flat.dtype)
            out, z = steps.forward(flat, rows, maps, activation, scale)
        ctx.save_for_backward(kept_x, z, down_w, up_w)
        ctx.activation, ctx.scale, ctx.is_sequential, ctx.x_dtype = activation, scale, y is None, x.dtype
        ctx.bias_dtypes, ctx.steps = (down_b.dtype, up_b.dtype), steps
        return out.view(stream.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, down_w, up_w = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[1]
        with torch.autocast(grad.device.type, enabled=False):
            rows, flat = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
            maps = down_w.to(flat.dtype), up_w.to(flat.dtype)
            grads = ctx.steps.backward(flat, rows, z, *maps, ctx.activation, ctx.scale, ctx.is_sequential, needs_x)
        down_dtype, up_dtype = ctx.bias_dtypes
        return (
            None if ctx.is_sequential else grad,
            None if grads.x is None else grads.x.view(x.shape).to(ctx.x_dtype),
            grads.down_w.to(down_w.dtype),
            grads.down_b.to(down_dtype),
            grads.up_w.to(up_w.dtype),
            grads.up_b.to(up_dtype),
            *(None,) * 3,
        )
