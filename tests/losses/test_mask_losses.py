"""Mask losses at each mask's own points: values and gradients are those of plain autograd on dense logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vispeft.losses.mask_losses import mask_losses
from vispeft.losses.points import PointPlan, cell_rows, corners, sample_masks

PLAN = PointPlan.of(8, 3.0, 0.75)


def plain_losses(embeddings: Tensor, features: Tensor, masks: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """One image, the textbook way: embeddings [M, D], features [D, h, w], masks [M, H, W] and drawn points [P, 2]."""

    def read(maps: Tensor, points: Tensor) -> Tensor:
        return F.grid_sample(maps[:, None], (2 * points - 1)[:, None], align_corners=False)[:, 0, 0]

    dense = torch.einsum("md,dhw->mhw", embeddings, features)
    chosen = PLAN.select(read(dense, points.expand(len(dense), -1, -1)))
    logits, labels = read(dense, points[chosen]), read(masks.float(), points[chosen])
    probs = logits.sigmoid()
    dice = 1 - (2 * (probs * labels).sum(1) + 1) / (probs.sum(1) + labels.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1), dice


@pytest.mark.parametrize(
    ("at_once", "cached"), [(1, 1), (2, 2), (100, 100), (100, 2)], ids=["1_at_once", "2_at_once", "all", "all_in_parts"]
)
@pytest.mark.parametrize("scale", [1.0, 8.0], ids=lambda scale: f"scale_{scale}")
@pytest.mark.parametrize("points_per_cell", [0, 100], ids=["logits_of_cells", "features_of_points"])
def test_mask_losses__has_the_values_and_gradients_of_plain_autograd(
    points_per_cell: int, scale: float, at_once: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vispeft.losses.mask_losses.POINTS_PER_CELL", points_per_cell)
    monkeypatch.setattr("vispeft.losses.mask_losses.LOGITS_AT_ONCE", at_once * PLAN.num_drawn)
    monkeypatch.setattr("vispeft.losses.mask_losses.CACHED_LOGITS", cached * PLAN.num_drawn)
    torch.manual_seed(0)
    embeddings = (scale * torch.randn(5, 6)).requires_grad_()
    features = torch.randn(3, 6, 7, 5, requires_grad=True)
    masks, target_idx = torch.rand(4, 12, 12) > 0.5, torch.tensor([1, 0, 2, 3, 3])
    points = torch.rand(PLAN.num_drawn, 2)
    read_masks = sample_masks(masks, corners(points, 12, 12))
    found = mask_losses(
        embeddings, cell_rows(features), read_masks, target_idx, at=corners(points, 7, 5), counts=(2, 0, 3), plan=PLAN
    )
    first = plain_losses(embeddings[:2], features[0], masks[target_idx[:2]], points)
    last = plain_losses(embeddings[2:], features[2], masks[target_idx[2:]], points)
    for losses, *parts in zip(found, first, last, strict=True):
        expected, weights = torch.cat(parts), torch.rand(5)
        torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)
        grads = torch.autograd.grad(weights @ losses, (embeddings, features), retain_graph=True)
        wanted = torch.autograd.grad(weights @ expected, (embeddings, features), retain_graph=True)
        for grad, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-5, rtol=1e-4)


def test_mask_losses__is_as_by_hand_for_an_undecided_mask() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(1, PLAN.num_drawn)
    masks[0, PLAN.num_candidates :] = 1  # the two random points, always chosen
    at = corners(torch.rand(PLAN.num_drawn, 2), 4, 4)
    cells = torch.randn(1, 16, 6)
    cross_entropy, dice = mask_losses(torch.zeros(1, 6), cells, masks, torch.tensor([0]), at=at, counts=(1,), plan=PLAN)
    # probability 0.5 at eight points, two of them in the mask: 1 - (2 * 1 + 1) / (4 + 2 + 1)
    torch.testing.assert_close(dice, torch.tensor([4 / 7]))
    torch.testing.assert_close(cross_entropy, torch.tensor([math.log(2)]))


def test_mask_losses__is_finite_for_extreme_logits() -> None:
    torch.manual_seed(0)
    embeddings = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    at = corners(torch.rand(PLAN.num_drawn, 2), 4, 4)
    masks = torch.zeros(1, PLAN.num_drawn)
    losses = mask_losses(embeddings, torch.ones(1, 16, 1), masks, torch.tensor([0, 0]), at=at, counts=(2,), plan=PLAN)
    torch.stack(losses).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert all(loss.isfinite().all() and loss[1] < 1e-6 < loss[0] for loss in losses)


def test_mask_losses__serves_frozen_features() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(2, 6, requires_grad=True)
    at = corners(torch.rand(PLAN.num_drawn, 2), 4, 4)
    masks, target_idx = torch.rand(1, PLAN.num_drawn), torch.tensor([0, 0])
    losses = mask_losses(embeddings, torch.randn(1, 16, 6), masks, target_idx, at=at, counts=(2,), plan=PLAN)
    torch.stack(losses).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.any()


def test_mask_losses__is_empty_but_differentiable_without_pairs() -> None:
    embeddings, cells = torch.zeros(0, 6, requires_grad=True), torch.randn(1, 16, 6, requires_grad=True)
    at = corners(torch.rand(PLAN.num_drawn, 2), 4, 4)
    masks, target_idx = torch.zeros(0, PLAN.num_drawn), torch.zeros(0, dtype=torch.int64)
    losses = mask_losses(embeddings, cells, masks, target_idx, at=at, counts=(0,), plan=PLAN)
    torch.stack(losses).sum().backward()
    assert losses[0].shape == losses[1].shape == (0,)
    assert cells.grad is not None
    assert not cells.grad.any()
