"""Logits at each mask's own points: values and gradients are those of plain autograd."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vispeft.losses.pair_logits import pair_logits
from vispeft.losses.points import PointPlan, cell_rows, corners


def test_pair_logits__has_the_values_and_gradients_of_dense_logits_sampled() -> None:
    torch.manual_seed(0)
    counts, plan = (2, 0, 3), PointPlan.of(8, 3.0, 0.75)
    embeddings = torch.randn(5, 6, requires_grad=True)
    features = torch.randn(3, 6, 7, 5, requires_grad=True)
    points = torch.rand(plan.num_drawn, 2)
    logits, chosen = pair_logits(embeddings, cell_rows(features), corners(points, 7, 5), counts, plan)

    dense = torch.einsum("nd,ndhw->nhw", embeddings, features[torch.tensor([0, 0, 2, 2, 2])])
    grid = (2 * points[chosen] - 1)[:, None]  # [M, 1, P, 2]
    expected = F.grid_sample(dense[:, None], grid, align_corners=False)[:, 0, 0]
    grad = torch.randn_like(expected)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    for found, wanted in zip(
        torch.autograd.grad(logits, (embeddings, features), grad),
        torch.autograd.grad(expected, (embeddings, features), grad),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_pair_logits__serves_frozen_features() -> None:
    torch.manual_seed(0)
    plan = PointPlan.of(8, 3.0, 0.75)
    embeddings = torch.randn(2, 6, requires_grad=True)
    at = corners(torch.rand(plan.num_drawn, 2), 4, 4)
    logits, _ = pair_logits(embeddings, torch.randn(1, 16, 6), at, (2,), plan)
    logits.sum().backward()
    assert embeddings.grad is not None


def test_pair_logits__has_no_rows_without_pairs() -> None:
    plan = PointPlan.of(8, 3.0, 0.75)
    cells = torch.randn(1, 16, 6, requires_grad=True)
    logits, chosen = pair_logits(
        torch.zeros(0, 6, requires_grad=True), cells, corners(torch.rand(plan.num_drawn, 2), 4, 4), (0,), plan
    )
    logits.sum().backward()
    assert logits.shape == chosen.shape == (0, 8)
    assert cells.grad is not None
    assert not cells.grad.any()
