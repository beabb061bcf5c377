"""Mask losses of many queries, each at its least certain points, with their gradients.

Written out rather than left to autograd: image by image and some masks at a time, so that few logits are held at once.
Matrix products serve a chunk of masks. On the CPU, selection and losses serve a few of them, which stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft.losses.pairs import Pairs
from vispeft.losses.points import (
    LOGITS_AT_ONCE,
    Corners,
    PointPlan,
    cell_rows,
    corners,
    read_rows,
    sample_masks,
    spread_rows,
)
from vispeft.structures import Targets

# from so many points for each cell on, logits of all cells are computed and read at the points, in place of features
# that are read at the points and multiplied there: fewer products, and no features of points to keep
POINTS_PER_CELL = 8
# logits of points that selection and losses read at once on the CPU
CACHED_LOGITS = 2**20


@dataclass(frozen=True)
class _Chunk:
    """Some masks of one image, as rows among the masks of all images.

    parts: of the chunk, each as rows within it
    """

    image_idx: int
    rows: slice
    parts: tuple[slice, ...]


def _chunks(counts: Sequence[int], num_drawn: int, device: torch.device) -> Iterator[_Chunk]:
    """Yield all masks in chunks, image after image; `counts` holds the number of masks of each image."""
    step, first = max(1, LOGITS_AT_ONCE // num_drawn), 0
    part_step = max(1, CACHED_LOGITS // num_drawn) if device.type == "cpu" else step
    for image_idx, count in enumerate(counts):
        for start in range(0, count, step):
            size = min(step, count - start)
            parts = tuple(slice(at, min(at + part_step, size)) for at in range(0, size, part_step))
            yield _Chunk(image_idx, slice(first + start, first + start + size), parts)
        first += count


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
        from_cells = POINTS_PER_CELL * at.num_cells <= plan.num_drawn
        features = list(cells) if from_cells else [read_rows(rows, at) for rows in cells]  # [h w, D] or [P, D] each
        cross_entropies, dices = [], []
        kept: list[Tensor] = []
        for chunk in _chunks(counts, plan.num_drawn, cells.device):
            targets = target_idx[chunk.rows]
            chunk_logits = _logits(embeddings[chunk.rows], features[chunk.image_idx], from_cells)
            for part in chunk.parts:
                all_logits = _at_points(chunk_logits, part, at) if from_cells else chunk_logits[part]
                chosen = plan.select(all_logits)
                logits = all_logits.gather(1, chosen)  # [m, num_points]
                cross_entropy, dice, *saved = _losses(logits, _labels(masks, targets[part], chosen))
                cross_entropies.append(cross_entropy)
                dices.append(dice)
                kept.extend((chosen.int(), *saved))
        ctx.save_for_backward(embeddings, masks, target_idx, *features, *kept)
        ctx.at, ctx.counts, ctx.num_drawn, ctx.from_cells = at, counts, plan.num_drawn, from_cells
        nothing = embeddings.new_zeros(0)
        return torch.cat([nothing, *cross_entropies]), torch.cat([nothing, *dices])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_cross_entropy: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, masks, target_idx, *rest = ctx.saved_tensors
        features, kept = rest[: len(ctx.counts)], iter(rest[len(ctx.counts) :])
        grad_embeddings = torch.empty_like(embeddings)
        needs_cells = ctx.needs_input_grad[1]
        grad_features: list[Tensor | None] = [None for _ in ctx.counts]
        for chunk in _chunks(ctx.counts, ctx.num_drawn, embeddings.device):
            targets, of_cross_entropy, of_dice = (
                rows[chunk.rows] for rows in (target_idx, grad_cross_entropy, grad_dice)
            )
            grad_logits = _no_grad_of_logits(len(targets), ctx.num_drawn, features[chunk.image_idx], ctx.from_cells)
            for part in chunk.parts:
                chosen, probs, overlaps, sizes = next(kept).long(), next(kept), next(kept), next(kept)
                labels = _labels(masks, targets[part], chosen)
                grad = _losses_grad(of_cross_entropy[part], of_dice[part], labels, probs, overlaps, sizes)
                # the points of a mask are distinct, so plain writes do
                if ctx.from_cells:
                    by_point = grad.new_zeros(ctx.num_drawn, len(grad))
                    by_point.T.scatter_(1, chosen, grad)
                    grad_logits[part] = spread_rows(by_point, ctx.at).T
                else:
                    grad_logits[part].scatter_(1, chosen, grad)
            torch.mm(grad_logits, features[chunk.image_idx], out=grad_embeddings[chunk.rows])
            if needs_cells:
                summed = grad_features[chunk.image_idx]
                grad_features[chunk.image_idx] = (
                    torch.mm(grad_logits.T, embeddings[chunk.rows])
                    if summed is None
                    else summed.addmm_(grad_logits.T, embeddings[chunk.rows])
                )
        if not needs_cells:
            return grad_embeddings, None, *[None] * 5
        grad_cells = [_grad_cells(rows, ctx.at, ctx.from_cells, like=features[0]) for rows in grad_features]
        return grad_embeddings, torch.stack(grad_cells), *[None] * 5


def _logits(embeddings: Tensor, features: Tensor, from_cells: bool) -> Tensor:
    """Return the logits of embeddings [m, D] with features [N, D]: of points [m, P], or of cells [h w, m]."""
    return features @ embeddings.T if from_cells else embeddings @ features.T


def _at_points(cell_logits: Tensor, part: slice, at: Corners) -> Tensor:
    """Return the logits [m', P] of a part of the masks, read at points. cell_logits: [h w, m]"""
    return read_rows(cell_logits[:, part].contiguous(), at).T.contiguous()


def _no_grad_of_logits(count: int, num_drawn: int, features: Tensor, from_cells: bool) -> Tensor:
    """Return zeros in the size and layout of `_logits`, one row for each mask. features: of points or cells [N, D]"""
    return features.new_zeros(len(features), count).T if from_cells else features.new_zeros(count, num_drawn)


def _grad_cells(grad_features: Tensor | None, at: Corners, from_cells: bool, *, like: Tensor) -> Tensor:
    """Return the gradient [h w, D] of one image's cells from that of its features; zeros without a mask."""
    if grad_features is None:
        return like.new_zeros(at.num_cells, like.shape[1])
    return grad_features if from_cells else spread_rows(grad_features, at)


def _labels(masks: Tensor, target_idx: Tensor, chosen: Tensor) -> Tensor:
    """Labels of the targets `target_idx` [m] of `masks` at the chosen points [m, num_points]."""
    return masks.index_select(0, target_idx).gather(1, chosen)


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy and dice losses [M] of logits and labels [M, P], and the tensors that their gradients need."""
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
    at: corners of the drawn points on the features
    """
    losses: tuple[Tensor, Tensor] = _MaskLosses.apply(embeddings, cells, masks, target_idx, at, tuple(counts), plan)
    return losses


def paired_mask_losses(
    embeddings: Tensor, mask_features: Tensor, pairs: Pairs, targets: Sequence[Targets], plan: PointPlan
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice losses, summed over pairs, at the points where each mask is least certain and at random.

    The candidates are drawn once for the batch: the points of one mask are distributed as in PointRend.

    embeddings: [R, D] float32, of all rows of `pairs`
    mask_features: [B, D, h, w] float32
    """
    points = torch.rand(plan.num_drawn, 2, device=mask_features.device)
    at, at_pixels = (corners(points, *x.shape[-2:]) for x in (mask_features, targets[0].masks))
    masks = torch.cat([sample_masks(t.masks, at_pixels) for t in targets])  # [sum T, P]
    cross_entropy, dice = mask_losses(
        embeddings.index_select(0, pairs.rows),
        cell_rows(mask_features),
        masks,
        pairs.targets,
        at=at,
        counts=pairs.counts,
        plan=plan,
    )
    return pairs.weights @ cross_entropy, pairs.weights @ dice
