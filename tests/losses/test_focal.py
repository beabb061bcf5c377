"""Focal loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from vispeft.losses.focal import focal_loss


@pytest.mark.parametrize(
    ("label", "expected"), [(1.0, 0.25 * 0.75**2 * math.log(4)), (0.0, 0.75 * 0.25**2 * math.log(4 / 3))], ids=str
)
def test_focal_loss__is_as_by_hand(label: float, expected: float) -> None:
    logit = torch.tensor(math.log(0.25 / 0.75))  # probability 0.25
    torch.testing.assert_close(focal_loss(logit, torch.tensor(label)), torch.tensor(expected))


def test_focal_loss__without_focus_is_half_the_cross_entropy() -> None:
    logits, labels = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([1.0, 0.0, 1.0])
    expected = 0.5 * F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(focal_loss(logits, labels, alpha=0.5, gamma=0.0), expected)
