"""The steps of the low-rank update by Triton's kernels, on rows [M, *]: what `torch_impl.py` does in torch.

The seed of dropout is one int64 on the device: a CUDA graph that holds the drawing of it draws anew at each replay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vispeft_kernels.launch import rows_of
from vispeft_kernels.lora import triton_impl
from vispeft_kernels.lora.dropout import Seed
from vispeft_kernels.lora.torch_impl import Rows, Starts
from vispeft_kernels.lora.triton_impl import Dropout, new_seed

__all__ = ["gradients", "linear", "new_seed", "update_"]


def update_(
    y: Tensor, rows: Tensor, a: Tensor, b: Tensor, scale: float, starts: Starts, dropout: float, seed: Seed
) -> Tensor:
    """Adds `scale * (dropout(x) a^T) b^T` to y [M, N] in place; returns h = dropout(x) a^T [M, parts * r]."""
    hidden = triton_impl.shrink(rows, a, _dropout(dropout, seed))
    if len(starts) == 1:
        y[:, starts[0] : starts[0] + b.shape[0]].addmm_(hidden, b.t(), alpha=scale)
    else:
        triton_impl.expand_(y, hidden, b, scale, starts)
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
    """`x W^T + bias` with the update, and h; in one kernel where that was measured to be the faster."""
    config = triton_impl.product_for(rows, weight.shape[0], b.shape[1], "forward")
    if config is None:
        y = F.linear(rows, weight, bias)
        return y, update_(y, rows, a, b, scale, starts, dropout, seed)
    hidden = triton_impl.shrink(rows, a, _dropout(dropout, seed))
    return triton_impl.linear(rows, weight, bias, hidden, b, scale, starts, config), hidden


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
    grad = rows_of(grad)
    grad_hidden, grad_b = triton_impl.grad_hidden_and_b(grad, hidden, b, scale, starts)
    drop = _dropout(dropout, seed)
    x = rows[:]
    grad_a = triton_impl.grad_a(x, grad_hidden, drop) if dropout else grad_hidden.t() @ x
    return _grad_x(grad, weight, grad_hidden, a, drop) if needs_x else None, grad_a, grad_b


def _grad_x(grad: Tensor, weight: Tensor | None, grad_hidden: Tensor, a: Tensor, dropout: Dropout) -> Tensor:
    """grad W + dropout(grad_h a), [M, K], where there is a weight; without, the second part alone."""
    if weight is None:
        if dropout.seed is None:
            return grad_hidden @ a
        blank = torch.zeros(grad.shape[0], a.shape[1], dtype=grad.dtype, device=grad.device)
        return triton_impl.expand_(blank, grad_hidden, a, 1.0, (0,), by_rank=True, dropout=dropout)
    weight = weight.to(grad.dtype)
    config = triton_impl.product_for(grad, weight.shape[1], a.shape[0], "backward", dropout)
    if config is not None:
        return triton_impl.linear(
            grad, weight, None, grad_hidden, a, 1.0, (0,), config, by_feature=True, dropout=dropout
        )
    grad_x = grad @ weight
    if dropout.seed is None:
        return grad_x.addmm_(grad_hidden, a)
    return triton_impl.expand_(grad_x, grad_hidden, a, 1.0, (0,), by_rank=True, dropout=dropout)


def _dropout(probability: float, seed: Seed) -> Dropout:
    if not probability:
        return triton_impl.NONE
    assert isinstance(seed, Tensor)
    return Dropout(probability, seed)
