"""The low-rank update of rows that belong to different adapters, in plain torch.

Runs of equal lengths whose factors have equal shapes take one batched product for all of them: one adapter for each
image of a batch. Others are updated run by run. Kept for the backward pass: x, and the rank-sized product of each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.lora import torch_impl
from vispeft_kernels.lora.options import Factors, InputRows, Kept, LoraOptions


class Run(NamedTuple):
    """Rows of a batch with the factors and the scale of their update."""

    rows: slice
    factors: Factors
    scale: float


def segmented(y: Tensor, x: Tensor, runs: Sequence[Run], column_offsets: Sequence[int], overwrite: bool) -> Tensor:
    """Return y [M, N] with the update of each run; other rows as they are.

    x: [M, K]; overwrite: True if y has no other user
    """
    if not runs:
        return y
    tensors = [y, x, *(factor for run in runs for factor in run.factors)]
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if needs_grad and not torch.compiler.is_compiling():
        spans = [(run.rows, run.scale) for run in runs]
        result: Tensor = _Segmented.apply(spans, column_offsets, *tensors)
        return result
    out = y if overwrite and not needs_grad else y.clone(memory_format=torch.contiguous_format)
    _update_(out, x, runs, column_offsets)
    return out


def _update_(y: Tensor, x: Tensor, runs: Sequence[Run], column_offsets: Sequence[int]) -> list[Tensor]:
    """Update the rows of every run in place; return the rank-sized product of each."""
    with torch.autocast(y.device.type, enabled=False):
        x = x.to(y.dtype)
        cast = [Run(run.rows, run.factors.to(y.dtype), run.scale) for run in runs]
        if _are_alike(cast) and sum(run.rows.stop - run.rows.start for run in cast) == y.shape[0]:
            return _update_together_(y, x, cast, column_offsets)
        options = [LoraOptions(run.scale, tuple(column_offsets)) for run in cast]
        return [
            torch_impl.update_(y[run.rows], x[run.rows], run.factors, each)
            for run, each in zip(cast, options, strict=True)
        ]


def _are_alike(runs: Sequence[Run]) -> bool:
    """Return True for runs of one length and one scale, whose factors have one shape."""
    kinds = {(run.rows.stop - run.rows.start, run.scale, run.factors.a.shape, run.factors.b.shape) for run in runs}
    return len(kinds) == 1


def _update_together_(y: Tensor, x: Tensor, runs: Sequence[Run], column_offsets: Sequence[int]) -> list[Tensor]:
    """Update y in place by one batched product a part; return the rank-sized product of each run."""
    count, parts = len(runs), len(column_offsets)
    a = torch.stack([run.factors.a for run in runs])  # [runs, parts * r, K]
    b = torch.stack([run.factors.b for run in runs])  # [runs, parts * n, r]
    hidden = torch.bmm(x.view(count, -1, x.shape[1]), a.mT)
    by_run = y.view(count, -1, y.shape[1])
    for offset, h, part in zip(column_offsets, hidden.chunk(parts, 2), b.chunk(parts, 1), strict=True):
        by_run[..., offset : offset + part.shape[1]].baddbmm_(h, part.mT, alpha=runs[0].scale)
    return list(hidden)


class _Segmented(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, spans: Sequence[tuple[slice, float]], column_offsets: Sequence[int], *tensors: Tensor
    ) -> Tensor:
        y, x, *flat = tensors
        pairs = [Factors(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
        runs = [Run(rows, pair, scale) for (rows, scale), pair in zip(spans, pairs, strict=True)]
        out = y.clone(memory_format=torch.contiguous_format)
        hidden = _update_(out, x, runs, column_offsets)
        ctx.save_for_backward(x, *flat, *hidden)
        ctx.spans, ctx.column_offsets = spans, column_offsets
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        count = len(ctx.spans)
        flat, hidden = saved[: 2 * count], saved[2 * count :]
        grad_x = torch.zeros_like(x, dtype=grad.dtype) if ctx.needs_input_grad[3] else None
        grads: list[Tensor] = []
        with torch.autocast(grad.device.type, enabled=False):
            for (rows, scale), a, b, h in zip(ctx.spans, flat[::2], flat[1::2], hidden, strict=True):
                part = grad[rows]
                kept = Kept(InputRows(x[rows].to(part.dtype), None, part.dtype), None, Factors(a, b).to(part.dtype), h)
                options = LoraOptions(scale, tuple(ctx.column_offsets))
                of_a, of_b = torch_impl.factor_gradients(part, kept, options, None if grad_x is None else grad_x[rows])
                grads += [of_a.to(a.dtype), of_b.to(b.dtype)]
        if grad_x is not None:
            grad_x = grad_x.to(x.dtype)
        return None, None, grad if ctx.needs_input_grad[2] else None, grad_x, *grads
