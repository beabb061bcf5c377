"""The low-rank update in plain torch, on rows [M, *]: the default, and the only one on a CPU.

`triton_impl.py` has the same functions; `Implementation` in `autograd.py` declares them. The rank-sized products h and
its gradient are computed as their transposes, the small matrix first: `a x^T` takes two thirds of the time of `x a^T`
on a CPU, and `b^T grad^T` a third of that of `grad b` at rank 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vispeft_kernels.lora.dropout import blocks, masks
from vispeft_kernels.lora.options import Factors, InputRows, Kept, LoraOptions


def new_seed(x: Tensor) -> Tensor:
    """Draw a seed from torch's CPU generator, so that `torch.manual_seed` decides the masks without waiting for x."""
    return torch.randint(2**62, (1,), device="cpu")


def update_(y: Tensor, rows: Tensor, factors: Factors, options: LoraOptions) -> Tensor:
    """Add `scale * (dropout(x) a^T) b^T` to y [M, N] in place; return h = dropout(x) a^T [M, parts * r]."""
    hidden = _shrink(rows, factors.a, options)
    expand_(y, hidden, factors.b, options)
    return hidden


def linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors, options: LoraOptions
) -> tuple[Tensor, Tensor]:
    """Return `x W^T + bias` with the update [M, N], and h."""
    y = F.linear(rows, weight, bias)
    return y, update_(y, rows, factors, options)


def gradients(grad: Tensor, kept: Kept, options: LoraOptions, needs_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x [M, K], through the frozen product too where there is a weight, of a and of b."""
    grad_x = _base_grad(grad, kept.weight, kept.rows.kept) if needs_x else None
    return grad_x, *factor_gradients(grad, kept, options, grad_x)


def factor_gradients(grad: Tensor, kept: Kept, options: LoraOptions, grad_x: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradients of a and of b; add that of x through them to `grad_x` [M, K] in place where it is given."""
    grad_hidden, grad_b = _grad_hidden_and_b(grad, kept.hidden, kept.factors.b, options)
    return _grad_a_and_x(grad_hidden, kept.rows, kept.factors.a, grad_x, options), grad_b


def expand_(y: Tensor, hidden: Tensor, b: Tensor, options: LoraOptions) -> None:
    """Add `scale * h b^T` to y [M, N] in place, part by part."""
    parts, width = options.parts, b.shape[0] // options.parts
    for offset, h, part in zip(options.column_offsets, hidden.chunk(parts, 1), b.chunk(parts), strict=True):
        y[:, offset : offset + width].addmm_(h, part.t(), alpha=options.scale)


def _shrink(rows: Tensor, a: Tensor, options: LoraOptions) -> Tensor:
    """Return h = dropout(x) a^T [M, parts * r], laid out by columns. rows: [M, K]; a: [parts * r, K]."""
    if not options.dropout:
        return (a @ rows.t()).t()
    transposed = rows.new_empty(a.shape[0], rows.shape[0])
    for block, mask in zip(blocks(rows), masks(rows, options.dropout, options.seed), strict=True):
        torch.mm(a, mask.mul_(rows[block]).t(), out=transposed[:, block])
    return transposed.div_(1 - options.dropout).t()


def _grad_hidden_and_b(grad: Tensor, hidden: Tensor, b: Tensor, options: LoraOptions) -> tuple[Tensor, Tensor]:
    """Return the gradients of h [M, parts * r], laid out by columns, and of b. grad: [M, N]"""
    parts, width, rank = options.parts, b.shape[0] // options.parts, b.shape[1]
    transposed = grad.new_empty(parts * rank, grad.shape[0])
    grad_b = grad.new_empty(parts, rank, width)
    for i, offset in enumerate(options.column_offsets):
        columns = grad[:, offset : offset + width]
        ranks = slice(i * rank, (i + 1) * rank)
        torch.mm(b[i * width : (i + 1) * width].t(), columns.t(), out=transposed[ranks])
        torch.mm(hidden[:, ranks].t(), columns, out=grad_b[i])
    return transposed.mul_(options.scale).t(), grad_b.mul_(options.scale).transpose(1, 2).reshape(b.shape)


def _grad_a_and_x(grad_hidden: Tensor, x: InputRows, a: Tensor, grad_x: Tensor | None, options: LoraOptions) -> Tensor:
    """Return the gradient of a [parts * r, K]; add that of x to `grad_x` [M, K] in place where it is given."""
    if not options.dropout:
        if grad_x is not None:
            grad_x.addmm_(grad_hidden, a)
        if x.recompute is None:
            return grad_hidden.t() @ x[:]
        grad_a = torch.zeros_like(a)
        for block in blocks(x.kept):
            grad_a.addmm_(grad_hidden[block].t(), x[block])
        return grad_a
    grad_a = torch.zeros_like(a)
    grad_hidden = grad_hidden / (1 - options.dropout)
    each_mask = masks(x.kept.to(a.dtype), options.dropout, options.seed)
    for block, mask in zip(blocks(x.kept), each_mask, strict=True):
        if grad_x is not None:
            grad_x[block] += (grad_hidden[block] @ a).mul_(mask)
        grad_a.addmm_(grad_hidden[block].t(), mask.mul_(x[block]))
    return grad_a


def _base_grad(grad: Tensor, weight: Tensor | None, rows: Tensor) -> Tensor:
    """Return the gradient of x through the frozen product, grad W [M, K], or zeros without a weight."""
    return grad.new_zeros(rows.shape) if weight is None else grad @ weight.to(grad.dtype)
