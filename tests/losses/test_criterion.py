"""The criterion: what it is worth on known cases, and what must not change it."""

from __future__ import annotations

import torch

from vispeft.losses import Criterion, HungarianMatcher
from vispeft.structures import LayerPredictions, Predictions, Targets


def test_criterion__has_finite_losses_without_targets() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 6, 3, requires_grad=True)
    layer = LayerPredictions(logits, torch.rand(1, 6, 4), torch.randn(1, 6, 8))
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, 16, 16, dtype=torch.bool))
    criterion = Criterion(matcher=HungarianMatcher(num_points=16), num_points=16)
    losses = criterion(Predictions((layer,), torch.randn(1, 8, 4, 4)), [empty])
    sum(losses.values()).backward()
    assert logits.grad is not None
    assert all(loss.isfinite() for loss in losses.values())
    assert logits.grad.abs().sum() > 0
