"""The low-rank update with a hand-written backward pass: the default on every device.

With W given, the frozen product's own gradient is taken here too, so that x gets one gradient instead of a sum of two,
and nothing of the output's size is ever made beside the output. Kept for backward: x, and h = x a^T of rank size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.lora.dropout import blocks, masks, new_seed

Starts = tuple[int, ...]
Replay = tuple[Callable[[Tensor], Tensor], Tensor]


def lora(
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    starts: Starts,
    dropout: float,
    replay: Replay | None,
) -> Tensor:
    """The update of y. With `weight`, y is plain data to be overwritten; without, y has a gradient of its own."""
    seed = new_seed() if dropout else 0
    remake, source = (None, None) if replay is None else replay
    result: Tensor = _Lora.apply(y, x, weight, bias, a, b, source, scale, starts, dropout, seed, remake)
    return result


@dataclass(frozen=True)
class _Rows:
    """Rows of x [M, K]: kept as they are, or made again block by block from what is kept."""

    kept: Tensor
    remake: Callable[[Tensor], Tensor] | None
    dtype: torch.dtype

    def __getitem__(self, block: slice) -> Tensor:
        rows = self.kept[block]
        return rows if self.remake is None else self.remake(rows).to(self.dtype)


def _shrink(rows: Tensor, a: Tensor, dropout: float, seed: int) -> Tensor:
    """h = dropout(x) a^T. rows: [M, K]; a: [parts * r, K]. Returns [M, parts * r]."""
    if not dropout:
        return rows @ a.t()
    hidden = rows.new_empty(rows.shape[0], a.shape[0])
    for block, mask in zip(blocks(rows), masks(rows, dropout, seed), strict=True):
        torch.mm(mask.mul_(rows[block]), a.t(), out=hidden[block])
    return hidden.div_(1 - dropout)


def _expand_(y: Tensor, hidden: Tensor, b: Tensor, scale: float, starts: Starts) -> None:
    """y += scale * h b^T in place, part by part. y: [M, N]."""
    width = b.shape[0] // len(starts)
    for start, h, part in zip(starts, hidden.chunk(len(starts), 1), b.chunk(len(starts)), strict=True):
        y[:, start : start + width].addmm_(h, part.t(), alpha=scale)


def _grad_hidden_and_b(grad: Tensor, hidden: Tensor, b: Tensor, scale: float, starts: Starts) -> tuple[Tensor, Tensor]:
    """Gradients of h [M, parts * r] and of b, block by block so that each reads grad [M, N] from the cache."""
    width, rank = b.shape[0] // len(starts), b.shape[1]
    grad_hidden = grad.new_empty(hidden.shape)
    grad_b = grad.new_zeros(len(starts), rank, width)
    for block in blocks(grad):
        for i, start in enumerate(starts):
            columns = grad[block, start : start + width]
            ranks = slice(i * rank, (i + 1) * rank)
            torch.mm(columns, b[i * width : (i + 1) * width], out=grad_hidden[block, ranks])
            # the small matrix first: twice as fast as grad^T h on a CPU
            grad_b[i].addmm_(hidden[block, ranks].t(), columns)
    return grad_hidden.mul_(scale), grad_b.mul_(scale).transpose(1, 2).reshape(b.shape)


def _grad_a_and_x(grad_hidden: Tensor, x: _Rows, a: Tensor, grad_x: Tensor | None, dropout: float, seed: int) -> Tensor:
    """Gradient of a [parts * r, K]; adds x's share to `grad_x` [M, K] in place where it is given."""
    grad_a = torch.zeros_like(a)
    if not dropout:
        if grad_x is not None:
            grad_x.addmm_(grad_hidden, a)
        for block in blocks(x.kept):
            grad_a.addmm_(grad_hidden[block].t(), x[block])
        return grad_a
    grad_hidden = grad_hidden / (1 - dropout)
    for block, mask in zip(blocks(x.kept), masks(x.kept.to(a.dtype), dropout, seed), strict=True):
        if grad_x is not None:
            grad_x[block] += (grad_hidden[block] @ a).mul_(mask)
        grad_a.addmm_(grad_hidden[block].t(), mask.mul_(x[block]))
    return grad_a


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        source: Tensor | None,
        scale: float,
        starts: Starts,
        dropout: float,
        seed: int,
        remake: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        kept_x = x.to(y.dtype)
        with torch.autocast(y.device.type, enabled=False):
            out = y if weight is not None and y.is_contiguous() else y.clone(memory_format=torch.contiguous_format)
            hidden = _shrink(kept_x.reshape(-1, x.shape[-1]), a.to(y.dtype), dropout, seed)
            _expand_(out.view(-1, y.shape[-1]), hidden, b.to(y.dtype), scale, starts)
        if out is y:
            ctx.mark_dirty(y)
        ctx.save_for_backward(kept_x if source is None else source, weight, a, b, hidden)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.x_dtype, ctx.options, ctx.remake = x.dtype, (scale, starts, dropout, seed), remake
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, hidden = ctx.saved_tensors
        scale, starts, dropout, seed = ctx.options
        needs_y, needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        with torch.autocast(grad.device.type, enabled=False):
            flat = grad.reshape(-1, grad.shape[-1])
            rows = _Rows(x.reshape(-1, x.shape[-1]), ctx.remake, flat.dtype)
            grad_x = _base_grad(flat, weight, rows.kept) if needs_x else None
            grad_hidden, grad_b = _grad_hidden_and_b(flat, hidden, b.to(flat.dtype), scale, starts)
            grad_a = _grad_a_and_x(grad_hidden, rows, a.to(flat.dtype), grad_x, dropout, seed)
            grad_weight = flat.t() @ rows[:] if needs_weight else None
            grad_bias = flat.sum(0) if needs_bias else None
        return (
            grad if needs_y else None,
            None if grad_x is None else grad_x.view(x.shape).to(ctx.x_dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(ctx.bias_dtype),
            grad_a.to(a.dtype),
            grad_b.to(b.dtype),
            *(None,) * 6,
        )


def _base_grad(grad: Tensor, weight: Tensor | None, rows: Tensor) -> Tensor:
    """What x gets through the frozen product: grad W [M, K], or zeros where there is none."""
    return grad.new_zeros(rows.shape) if weight is None else grad @ weight.to(grad.dtype)
