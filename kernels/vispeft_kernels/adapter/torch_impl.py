"""The steps of the bottleneck adapter in plain torch, on rows [M, *]. `triton_impl.py` has the same functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vispeft_kernels.adapter.reference import ACTIVATIONS

# gradient of the activation's input from that of its output and the input itself
GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "relu": lambda grad, z: torch.ops.aten.threshold_backward(grad, z, 0),
    "silu": torch.ops.aten.silu_backward,
}


class Maps(NamedTuple):
    """down_w [width, in]; down_b [width]; up_w [out, width]; up_b [out]."""

    down_w: Tensor
    down_b: Tensor
    up_w: Tensor
    up_b: Tensor

    def to(self, dtype: torch.dtype) -> Maps:
        """The same in another precision."""
        return Maps(*(one.to(dtype) for one in self))


@dataclass(frozen=True)
class Gradients:
    """Gradients of an adapter's input, where it is needed, and of its maps."""

    x: Tensor | None
    down_w: Tensor
    down_b: Tensor
    up_w: Tensor
    up_b: Tensor


def forward(y: Tensor, x: Tensor, maps: Maps, activation: str, scale: float) -> tuple[Tensor, Tensor]:
    """`y + scale * up(act(down(x)))` [M, out], a new tensor, and z = down(x) [M, width]."""
    z = torch.addmm(maps.down_b, x, maps.down_w.t())
    out = y.clone(memory_format=torch.contiguous_format)
    out.addmm_(ACTIVATIONS[activation](z), maps.up_w.t(), alpha=scale)
    return out.add_(maps.up_b, alpha=scale), z


def backward(
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
    """Gradients given that of the outcome, grad [M, out]; x has the residual's too where it is the stream itself."""
    grad_hidden = (grad @ up_w).mul_(scale)
    grad_z = GRADIENTS[activation](grad_hidden, z)
    grad_x = None
    if needs_x:
        grad_x = torch.addmm(grad, grad_z, down_w) if is_sequential else grad_z @ down_w
    return Gradients(
        grad_x,
        grad_z.t() @ x,
        grad_z.sum(0),
        (grad.t() @ ACTIVATIONS[activation](z)).mul_(scale),
        grad.sum(0).mul_(scale),
    )
