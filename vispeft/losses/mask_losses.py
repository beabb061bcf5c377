"""Mask losses of many queries, each at the points where it is least certain, with their gradients.

Written out rather than left to autograd: image by image, so that only one image's logits are held, and in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft.losses.points import Corners, PointPlan, read_rows, spread_rows


class _MaskLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        cells: Tensor,
        masks: Tensor,
        target_idx: Tensor,
        at: Corners,
        counts: tuple[int, ...],
        plan: PointPlan,
    ) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        cross_entropies, dices = [], []
        per_image = zip(embeddings.split_with_sizes(counts), cells, target_idx.split_with_sizes(counts), strict=True)
        for e, rows, targets in per_image:
            features = read_rows(rows, at)  # [P, D]
            all_logits = e @ features.T
            chosen = plan.select(all_logits)
            logits = all_logits.gather(1, chosen)  # [M, num_points]
            labels = masks.index_select(0, targets).gather(1, chosen)
            cross_entropy, dice, *saved = _losses(logits, labels)
            cross_entropies.append(cross_entropy)
            dices.append(dice)
            kept.extend((e, features, chosen, labels, *saved))
        ctx.save_for_backward(*kept)
        ctx.at, ctx.num_drawn = at, plan.num_drawn
        return torch.cat(cross_entropies), torch.cat(dices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_cross_entropy: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        grad_embeddings, grad_cells, first = [], [], 0
        for n in range(0, len(kept), 7):
            e, features, chosen, labels, probs, overlaps, sizes = kept[n : n + 7]
            part = slice(first, first := first + len(e))
            grad = _losses_grad(grad_cross_entropy[part], grad_dice[part], labels, probs, overlaps, sizes)
            # a mask's points are distinct, so plain writes do
            all_grad = grad.new_zeros(len(e), ctx.num_drawn).scatter_(1, chosen, grad)
            grad_embeddings.append(all_grad @ features)
            if ctx.needs_input_grad[1]:
                grad_cells.append(spread_rows(all_grad.T @ e, ctx.at))
        return torch.cat(grad_embeddings), torch.stack(grad_cells) if grad_cells else None, *[None] * 5


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy and dice losses [M] of logits and labels [M, P], and what their gradients need."""
    # one sigmoid serves both: BCE(x, t) = -log(sigmoid(-x)) - x t, and sigmoid(x) = 1 - sigmoid(-x)
    absent_probs = logits.neg().sigmoid_()
    probs = 1 - absent_probs
    overlaps = (probs * labels).sum(1)
    sizes = probs.sum(1) + labels.sum(1) + 1
    agreement = absent_probs.clamp_(min=torch.finfo(probs.dtype).tiny).log_().addcmul_(logits, labels)
    return -agreement.mean(1), 1 - (2 * overlaps + 1) / sizes, probs, overlaps, sizes


def _losses_grad(
    grad_cross_entropy: Tensor, grad_dice: Tensor, labels: Tensor, probs: Tensor, overlaps: Tensor, sizes: Tensor
) -> Tensor:
    """Gradient [M, P] for the logits from those of the two losses [M]."""
    by_label = 2 * grad_dice / sizes
    by_size = by_label * (overlaps + 0.5) / sizes
    # d dice / d p = (2 overlap + 1) / size^2 - 2 t / size, and d p / d x = p (1 - p)
    grad = torch.addcmul(by_size[:, None], by_label[:, None], labels, value=-1).mul_(
        probs.addcmul(probs, probs, value=-1)
    )
    return grad.addcmul_(probs - labels, (grad_cross_entropy / labels.shape[1])[:, None])


def mask_losses(
    embeddings: Tensor,
    cells: Tensor,
    masks: Tensor,
    target_idx: Tensor,
    *,
    at: Corners,
    counts: Sequence[int],
    plan: PointPlan,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice losses [M] of M masks, each at the points that `plan` selects for it.

    embeddings: [M, D] float32, image after image, `counts` of each
    cells: [B, h w, D] float32 (`cell_rows`)
    masks: [sum T, plan.num_drawn] float32, the targets of all images at the drawn points
    target_idx: [M] int64 into `masks`
    at: where the drawn points lie on the features
    """
    losses: tuple[Tensor, Tensor] = _MaskLosses.apply(embeddings, cells, masks, target_idx, at, tuple(counts), plan)
    return losses
