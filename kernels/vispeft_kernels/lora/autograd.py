"""The low-rank update with a hand-written backward pass: the default on every device.

With W given, the frozen product's own gradient is taken here too, so that x gets one gradient instead of a sum of two,
and nothing of the output's size is ever made beside the output. Kept for backward: x, and h = x a^T of rank size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.lora.dropout import Seed
from vispeft_kernels.lora.torch_impl import Rows, Starts

Replay = tuple[Callable[[Tensor], Tensor], Tensor]


class Steps(Protocol):
    """What `torch_impl.py` does in torch and `triton_steps.py` in Triton."""

    def new_seed(self, x: Tensor) -> Seed:
        """A seed for dropout, one int64, where the steps want it."""

    def update_(
        self,
        y: Tensor,
        rows: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        starts: Starts,
        dropout: float,
        seed: Seed,
    ) -> Tensor:
        """Adds the update to y in place; returns h."""

    def linear(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        starts: Starts,
        dropout: float,
        seed: Seed,
    ) -> tuple[Tensor, Tensor]:
        """The frozen map with its update, and h."""

    def gradients(
        self,
        grad: Tensor,
        rows: Rows,
        weight: Tensor | None,
        hidden: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        starts: Starts,
        dropout: float,
        seed: Seed,
        needs_x: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients of x, a and b."""


def lora(
    y: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    starts: Starts,
    dropout: float,
    replay: Replay | None,
    steps: Steps,
) -> Tensor:
    """The update of y. With `weight`, y is plain data to be overwritten, or None, and is made here.

    Without `weight`, y has a gradient of its own.
    """
    seed = steps.new_seed(x) if dropout else 0
    remake, source = (None, None) if replay is None else replay
    result: Tensor = _Lora.apply(y, x, weight, bias, a, b, source, seed, scale, starts, dropout, remake, steps)
    return result


def compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast would compute x's products in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        source: Tensor | None,
        seed: Seed,
        scale: float,
        starts: Starts,
        dropout: float,
        remake: Callable[[Tensor], Tensor] | None,
        steps: Steps,
    ) -> Tensor:
        dtype = compute_dtype(x) if y is None else y.dtype
        kept_x = x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            rows, factors = kept_x.reshape(-1, x.shape[-1]), (a.to(dtype), b.to(dtype))
            if y is None:
                assert weight is not None
                offset = None if bias is None else bias.to(dtype)
                flat, hidden = steps.linear(rows, weight.to(dtype), offset, *factors, scale, starts, dropout, seed)
                out = flat.view(*x.shape[:-1], flat.shape[1])
            else:
                out = y if weight is not None and y.is_contiguous() else y.clone(memory_format=torch.contiguous_format)
                hidden = steps.update_(out.view(-1, y.shape[-1]), rows, *factors, scale, starts, dropout, seed)
                if out is y:
                    ctx.mark_dirty(y)
        ctx.save_for_backward(kept_x if source is None else source, weight, a, b, hidden)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.x_dtype, ctx.options, ctx.remake, ctx.steps = x.dtype, (scale, starts, dropout, seed), remake, steps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, hidden = ctx.saved_tensors
        needs_y, needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        with torch.autocast(grad.device.type, enabled=False):
            flat = grad.reshape(-1, grad.shape[-1])
            rows = Rows(x.reshape(-1, x.shape[-1]), ctx.remake, flat.dtype)
            factors = a.to(flat.dtype), b.to(flat.dtype)
            grad_x, grad_a, grad_b = ctx.steps.gradients(flat, rows, weight, hidden, *factors, *ctx.options, needs_x)
            grad_weight = flat.t() @ rows[:] if needs_weight else None
            grad_bias = flat.sum(0) if needs_bias else None
        return (
            grad if needs_y else None,
            None if grad_x is None else grad_x.view(x.shape).to(ctx.x_dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(ctx.bias_dtype),
            grad_a.to(a.dtype),
            grad_b.to(b.dtype),
            *(None,) * 7,
        )
