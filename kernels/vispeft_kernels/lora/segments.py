"""The low-rank update of rows that belong to different adapters, in plain torch.

Runs of equal lengths whose factors have equal shapes take one batched product for all of them: one adapter for each
image of a batch. Others are updated run by run. Autograd keeps x and the rank-sized products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vispeft_kernels.lora.options import Factors


class Run(NamedTuple):
    """Rows `rows` of a batch and the update that they get; None for none."""

    rows: slice
    factors: Factors | None
    scale: float


def segmented(y: Tensor, x: Tensor, runs: Sequence[Run], column_offsets: Sequence[int], overwrite: bool) -> Tensor:
    """Return y [M, N] with the update of each run. x: [M, K]; overwrite: True if y has no other user"""
    given = [run.factors for run in runs if run.factors is not None]
    if not given:
        return y
    needs_grad = torch.is_grad_enabled() and any(
        one.requires_grad for one in (y, x, *(f for pair in given for f in pair))
    )
    factors = [pair.to(y.dtype) for pair in given]
    out = y if overwrite and not needs_grad else y.clone(memory_format=torch.contiguous_format)
    x = x.to(y.dtype)
    with torch.autocast(y.device.type, enabled=False):
        if len(given) == len(runs) and _are_alike(runs):
            _update_together_(out, x, runs, factors, column_offsets)
        else:
            _update_in_turn_(out, x, [run for run in runs if run.factors is not None], factors, column_offsets)
    return out


def _are_alike(runs: Sequence[Run]) -> bool:
    """Return True for runs of one length and one scale, whose factors have one shape."""
    kinds = {
        (run.rows.stop - run.rows.start, run.scale, *(factor.shape for factor in run.factors or ())) for run in runs
    }
    return len(kinds) == 1 and all(one.rows.stop == other.rows.start for one, other in pairwise(runs))


def _update_together_(
    y: Tensor, x: Tensor, runs: Sequence[Run], factors: Sequence[Factors], column_offsets: Sequence[int]
) -> None:
    """Update y in place by one batched product a part."""
    count, parts, scale = len(runs), len(column_offsets), runs[0].scale
    a = torch.stack([pair.a for pair in factors])  # [runs, parts * r, K]
    b = torch.stack([pair.b for pair in factors])  # [runs, parts * n, r]
    hidden = torch.bmm(x.view(count, -1, x.shape[1]), a.mT)
    by_run = y.view(count, -1, y.shape[1])
    for offset, h, part in zip(column_offsets, hidden.chunk(parts, 2), b.chunk(parts, 1), strict=True):
        by_run[..., offset : offset + part.shape[1]].baddbmm_(h, part.mT, alpha=scale)


def _update_in_turn_(
    y: Tensor, x: Tensor, runs: Sequence[Run], factors: Sequence[Factors], column_offsets: Sequence[int]
) -> None:
    """Update the rows of each run in place."""
    parts = len(column_offsets)
    for run, (a, b) in zip(runs, factors, strict=True):
        hidden, rows = x[run.rows] @ a.t(), y[run.rows]
        for offset, h, part in zip(column_offsets, hidden.chunk(parts, 1), b.chunk(parts), strict=True):
            rows[:, offset : offset + part.shape[0]].addmm_(h, part.t(), alpha=run.scale)
