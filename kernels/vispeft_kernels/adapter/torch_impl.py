"""The bottleneck adapter in plain torch, on rows [M, *]. `triton_impl.py` has the same functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vispeft_kernels.adapter.options import AdapterOptions, Gradients, Kept, Maps
from vispeft_kernels.adapter.reference import ACTIVATIONS

# gradient of the activation's input from that of its output and the input itself
GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "relu": lambda grad, z: torch.ops.aten.threshold_backward(grad, z, 0),
    "silu": torch.ops.aten.silu_backward,
}


def forward(y: Tensor, x: Tensor, maps: Maps, options: AdapterOptions) -> tuple[Tensor, Tensor]:
    """Return `y + scale * up(act(down(x)))` [M, out], a new tensor, and z = down(x) [M, width]."""
    z = torch.addmm(maps.down_b, x, maps.down_w.t())
    out = y.clone(memory_format=torch.contiguous_format)
    out.addmm_(ACTIVATIONS[options.activation](z), maps.up_w.t(), alpha=options.scale)
    return out.add_(maps.up_b, alpha=options.scale), z


def backward(grad: Tensor, kept: Kept, options: AdapterOptions, needs_x: bool) -> Gradients:
    """Return the gradients that belong to grad [M, out]; that of x includes the residual's if x is the stream."""
    z, activation, scale = kept.z, options.activation, options.scale
    grad_hidden = (grad @ kept.up_w).mul_(scale)
    grad_z = GRADIENTS[activation](grad_hidden, z)
    grad_x = None
    if needs_x:
        grad_x = torch.addmm(grad, grad_z, kept.down_w) if kept.is_sequential else grad_z @ kept.down_w
    return Gradients(
        grad_x,
        grad_z.t() @ kept.x,
        grad_z.sum(0),
        (grad.t() @ ACTIVATIONS[activation](z)).mul_(scale),
        grad.sum(0).mul_(scale),
    )
