"""The bottleneck adapter with a hand-written backward pass: the default on every device.

Kept for backward: x, which is the frozen map's output and kept by nobody else, and z = down(x) of bottleneck size; the
activation is taken again. Nothing of the output's size is made beside the output.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.adapter.reference import ACTIVATIONS

# gradient of the activation's input from that of its output and the input itself
GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "relu": lambda grad, z: torch.ops.aten.threshold_backward(grad, z, 0),
    "silu": torch.ops.aten.silu_backward,
}


def bottleneck_add(
    y: Tensor,
    x: Tensor,
    down_w: Tensor,
    down_b: Tensor,
    up_w: Tensor,
    up_b: Tensor,
    activation: str,
    scale: float,
) -> Tensor:
    """`y + scale * up(act(down(x)))`; y may be x itself."""
    stream = None if y is x else y
    result: Tensor = _Bottleneck.apply(stream, x, down_w, down_b, up_w, up_b, activation, scale)
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
    ) -> Tensor:
        stream = x if y is None else y
        dtype = stream.dtype
        kept_x = x.to(dtype)
        out = stream.clone(memory_format=torch.contiguous_format)
        with torch.autocast(x.device.type, enabled=False):
            rows = kept_x.reshape(-1, x.shape[-1])
            z = torch.addmm(down_b.to(dtype), rows, down_w.to(dtype).t())  # [M, width]
            flat = out.view(-1, out.shape[-1])
            flat.addmm_(ACTIVATIONS[activation](z), up_w.to(dtype).t(), alpha=scale)
            flat.add_(up_b.to(dtype), alpha=scale)
        ctx.save_for_backward(kept_x, z, down_w, up_w)
        ctx.activation, ctx.scale, ctx.is_sequential, ctx.x_dtype = activation, scale, y is None, x.dtype
        ctx.bias_dtypes = (down_b.dtype, up_b.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, down_w, up_w = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            rows, flat = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
            grad_hidden = (flat @ up_w.to(flat.dtype)).mul_(ctx.scale)
            grad_z = GRADIENTS[ctx.activation](grad_hidden, z)
            grad_up = (flat.t() @ ACTIVATIONS[ctx.activation](z)).mul_(ctx.scale)
            grad_down = grad_z.t() @ rows
            grad_x = _grad_x(grad_z, down_w.to(flat.dtype), flat if ctx.is_sequential else None)
        down_dtype, up_dtype = ctx.bias_dtypes
        return (
            None if ctx.is_sequential else grad,
            grad_x.view(x.shape).to(ctx.x_dtype) if ctx.needs_input_grad[1] else None,
            grad_down.to(down_w.dtype),
            grad_z.sum(0).to(down_dtype),
            grad_up.to(up_w.dtype),
            flat.sum(0).mul_(ctx.scale).to(up_dtype),
            None,
            None,
        )


def _grad_x(grad_z: Tensor, down_w: Tensor, residual: Tensor | None) -> Tensor:
    """Gradient of x [M, in]: through the bottleneck, and through the residual where x is the stream itself."""
    return grad_z @ down_w if residual is None else torch.addmm(residual, grad_z, down_w)
