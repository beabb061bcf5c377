"""The low-rank update of rows that belong to different adapters, by Triton's kernels: each kernel serves all rows.

Kept for backward: x, and h of rank size, as with one adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.lora import triton_impl
from vispeft_kernels.lora.torch_impl import Starts
from vispeft_kernels.lora.triton_impl import Dropout, Segments


def segmented(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, segments: Segments, scale: float, starts: Starts, dropout: float
) -> Tensor:
    """y [..., N] with the update. a: [adapters, parts * r, K]; b: [adapters, parts * n, r]."""
    drop = Dropout(dropout, triton_impl.new_seed(x)) if dropout else triton_impl.NONE
    result: Tensor = _Segmented.apply(y, x, a, b, segments, scale, starts, drop)
    return result


class _Segmented(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        segments: Segments,
        scale: float,
        starts: Starts,
        dropout: Dropout,
    ) -> Tensor:
        out, kept_x = y.clone(memory_format=torch.contiguous_format), x.to(y.dtype)
        with torch.autocast(y.device.type, enabled=False):
            hidden = triton_impl.shrink(kept_x.reshape(-1, x.shape[-1]), a.to(y.dtype), dropout, segments)
            rows = out.view(-1, y.shape[-1])
            triton_impl.expand_(rows, hidden, b.to(y.dtype), scale, starts, segments=segments)
        ctx.save_for_backward(kept_x, a, b, hidden)
        ctx.x_dtype, ctx.options = x.dtype, (segments, scale, starts, dropout)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, hidden = ctx.saved_tensors
        segments, scale, starts, dropout = ctx.options
        with torch.autocast(grad.device.type, enabled=False):
            flat, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
            factors = a.to(flat.dtype), b.to(flat.dtype)
            grad_hidden, grad_b = triton_impl.grad_hidden_and_b(flat, hidden, factors[1], scale, starts, segments)
            grad_a = triton_impl.grad_a(rows, grad_hidden, dropout, segments)
            grad_x = None
            if ctx.needs_input_grad[1]:
                grad_x = torch.zeros_like(rows, memory_format=torch.contiguous_format)
                triton_impl.expand_(
                    grad_x, grad_hidden, factors[0], 1.0, (0,), by_rank=True, dropout=dropout, segments=segments
                )
        return (
            grad if ctx.needs_input_grad[0] else None,
            None if grad_x is None else grad_x.view(x.shape).to(ctx.x_dtype),
            grad_a.to(a.dtype),
            grad_b.to(b.dtype),
            *(None,) * 4,
        )
