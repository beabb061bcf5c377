"""The softmax class loss against its published formula."""

from __future__ import annotations

import torch

from vispeft.losses.class_losses import softmax_class_loss
from vispeft.losses.pairs import Pairs
from vispeft.structures import Targets


def test_softmax_class_loss__is_the_mean_weighted_by_class() -> None:
    torch.manual_seed(0)
    logits, targets = (
        torch.randn(6, 4),
        Targets(torch.tensor([2, 0]), torch.rand(2, 4), torch.ones(2, 4, 4, dtype=torch.bool)),
    )
    pairs = Pairs(torch.tensor([4, 1]), torch.tensor([0, 1]), torch.ones(2), (2,))
    log_probs = logits.log_softmax(-1)
    expected = -(log_probs[4, 2] + log_probs[1, 0] + 0.1 * log_probs[[0, 2, 3, 5], 3].sum()) / (2 + 0.4)
    torch.testing.assert_close(softmax_class_loss(logits, pairs, [targets]), expected)
