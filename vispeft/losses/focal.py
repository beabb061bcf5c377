"""Focal loss, of class logits and of mask logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of each element (https://arxiv.org/abs/1708.02002). labels: 0 or 1, of the shape of `logits`."""
    probs = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    missed = probs + labels - 2 * probs * labels  # 1 - p for a positive, p for a negative
    return (1 - alpha + (2 * alpha - 1) * labels) * missed**gamma * cross_entropy
