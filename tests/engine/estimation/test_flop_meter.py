from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vispeft.engine.estimation.flop_meter import FlopMeter


@pytest.mark.parametrize("groups", [1, 4, 8], ids=["dense", "grouped", "depth-wise"])
def test_convolution__takes_twice_the_forward_pass_in_backward(groups: int) -> None:
    x = torch.randn(2, 8, 12, 12, requires_grad=True)
    weight = torch.randn(16, 8 // groups, 3, 3, requires_grad=True)
    with FlopMeter() as forward:
        y = F.conv2d(x, weight, groups=groups)
    with FlopMeter() as backward:
        y.sum().backward()
    assert forward.total == 2 * 2 * 16 * (8 // groups) * 9 * 10 * 10
    assert backward.total == 2 * forward.total


def test_frozen_weight__takes_once_the_forward_pass() -> None:
    x, weight = torch.randn(1, 4, 6, 6, requires_grad=True), torch.randn(4, 1, 3, 3)
    y = F.conv2d(x, weight, groups=4)
    with FlopMeter() as backward:
        y.sum().backward()
    assert backward.total == 2 * 4 * 9 * 4 * 4
