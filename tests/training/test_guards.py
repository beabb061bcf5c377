from __future__ import annotations

import pytest
import torch
from torch import nn

from vispeft.training.guards import BatchLosses, NoGradientError, NonFiniteError, check_finite, check_gradients

FINE = BatchLosses(("a.jpg",), {"class": 1.0})
BROKEN = BatchLosses(("b.jpg", "c.jpg"), {"class": 1.0, "mask": float("nan")})


def test_check_finite__names_step_losses_images_and_learning_rate() -> None:
    with pytest.raises(NonFiniteError) as caught:
        check_finite([FINE, BROKEN], 1.0, step=3, lr=0.05, may_skip=True)
    for part in ("step 3", "class 1, mask nan", "Images: b.jpg, c.jpg.", "learning rate (now 0.05)"):
        assert part in str(caught.value)


def test_check_finite__accepts_gradients_that_loss_scaling_skips() -> None:
    check_finite([FINE], float("inf"), step=1, lr=0.1, may_skip=True)
    with pytest.raises(NonFiniteError, match=r"gradients must be finite, but their norm is inf in step 1.*a\.jpg"):
        check_finite([FINE], float("inf"), step=1, lr=0.1, may_skip=False)


def test_check_gradients__lists_at_most_eight_parameters() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5)), nn.Linear(1, 1).requires_grad_(False))
    with pytest.raises(NoGradientError, match=r"10 got none: `0\.weight`, .*`3\.bias` and 2 more"):
        check_gradients(model)
    model[0].weight.grad = torch.zeros(1, 1)
    named = [name for name, _ in model.named_parameters() if name != "0.weight"]
    check_gradients(model, may_lack_gradient=named)
