"""Mask logits of many queries at the points where each of them is least certain, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft.losses.points import Corners, PointPlan, read_rows, spread_rows


class _PairLogits(torch.autograd.Function):
    """Image by image, so that what is held at once is one image's logits; autograd would copy every slice once more."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, cells: Tensor, at: Corners, counts: tuple[int, ...], plan: PointPlan
    ) -> tuple[Tensor, Tensor]:
        sampled, logits, chosen = [], [], []
        for e, rows in zip(embeddings.split_with_sizes(counts), cells, strict=True):
            sampled.append(read_rows(rows, at))  # [P, D]
            all_logits = e @ sampled[-1].T
            chosen.append(plan.select(all_logits))
            logits.append(all_logits.gather(1, chosen[-1]))
        points = torch.cat(chosen)
        ctx.save_for_backward(embeddings, points, *sampled)
        ctx.at, ctx.counts, ctx.num_drawn = at, counts, plan.num_drawn
        ctx.mark_non_differentiable(points)
        return torch.cat(logits), points

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        embeddings, points, *sampled = ctx.saved_tensors
        grad_embeddings, grad_cells = [], []
        per_image = (x.split_with_sizes(ctx.counts) for x in (embeddings, points, grad))
        for e, chosen, g, features in zip(*per_image, sampled, strict=True):
            # a mask's points are distinct, so plain writes do
            all_grad = g.new_zeros(len(g), ctx.num_drawn).scatter_(1, chosen, g)
            grad_embeddings.append(all_grad @ features)
            if ctx.needs_input_grad[1]:
                grad_cells.append(spread_rows(all_grad.T @ e, ctx.at))
        return torch.cat(grad_embeddings), torch.stack(grad_cells) if grad_cells else None, None, None, None


def pair_logits(
    embeddings: Tensor, cells: Tensor, at: Corners, counts: Sequence[int], plan: PointPlan
) -> tuple[Tensor, Tensor]:
    """Logits of M masks at the points that `plan` selects for each, and which points those are.

    embeddings: [M, D] float32, image after image, `counts` of each
    cells: [B, h w, D] float32 (`cell_rows`)
    at: where the `plan.num_drawn` points lie
    Returns [M, num_points] float32, differentiable, and [M, num_points] int64.
    """
    logits, chosen = _PairLogits.apply(embeddings, cells, at, tuple(counts), plan)
    return logits, chosen
