"""The steps of the low-rank update in plain torch, on rows [M, *]: the default, and the only ones on a CPU.

`triton_steps.py` has the same functions. Without dropout the seed is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vispeft_kernels.lora.dropout import Seed, blocks, masks, new_seed

__all__ = ["Rows", "expand_", "gradients", "linear", "new_seed", "update_"]

Starts = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of x [M, K]: kept as they are, or made again block by block from what is kept."""

    kept: Tensor
    remake: Callable[[Tensor], Tensor] | None
    dtype: torch.dtype

    def __getitem__(self, block: slice) -> Tensor:
        rows = self.kept[block]
        return rows if self.remake is None else self.remake(rows).to(self.dtype)


def _shrink(rows: Tensor, a: Tensor, dropout: float, seed: Seed) -> Tensor:
    """h = dropout(x) a^T. rows: [M, K]; a: [parts * r, K]. Returns [M, parts * r]."""
    if not dropout:
        return rows @ a.t()
    hidden = rows.new_empty(rows.shape[0], a.shape[0])
    for block, mask in zip(blocks(rows), masks(rows, dropout, seed), strict=True):
        torch.mm(mask.mul_(rows[block]), a.t(), out=hidden[block])
    return hidden.div_(1 - dropout)


def expand_(y: Tensor, hidden: Tensor, b: Tensor, scale: float, starts: Starts) -> None:
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


def _grad_a_and_x(grad_hidden: Tensor, x: Rows, a: Tensor, grad_x: Tensor | None, dropout: float, seed: Seed) -> Tensor:
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


def _base_grad(grad: Tensor, weight: Tensor | None, rows: Tensor) -> Tensor:
    """What x gets through the frozen product: grad W [M, K], or zeros where there is none."""
    return grad.new_zeros(rows.shape) if weight is None else grad @ weight.to(grad.dtype)


def update_(
    y: Tensor, rows: Tensor, a: Tensor, b: Tensor, scale: float, starts: Starts, dropout: float, seed: Seed
) -> Tensor:
    """Adds `scale * (dropout(x) a^T) b^T` to y [M, N] in place; returns h = dropout(x) a^T [M, parts * r]."""
    hidden = _shrink(rows, a, dropout, seed)
    expand_(y, hidden, b, scale, starts)
    return hidden


def linear(
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
    """`x W^T + bias` with the update, and h."""
    y = F.linear(rows, weight, bias)
    return y, update_(y, rows, a, b, scale, starts, dropout, seed)


def gradients(
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
    """Gradients of x [M, K], through the frozen product too where there is a weight, of a and of b."""
    grad_x = _base_grad(grad, weight, rows.kept) if needs_x else None
    grad_hidden, grad_b = _grad_hidden_and_b(grad, hidden, b, scale, starts)
    return grad_x, _grad_a_and_x(grad_hidden, rows, a, grad_x, dropout, seed), grad_b
