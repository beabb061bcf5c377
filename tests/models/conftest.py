"""Points of mask losses and matching costs that two criteria share, though they draw in different ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vispeft.losses.points import PointPlan


class SharedPoints:
    """Stands in for `torch.rand`: every draw of as many points gives the same ones, for all masks.

    plan: of the mask losses, at `num_points` points
    """

    num_points = 64

    def __init__(self) -> None:
        self.plan = PointPlan.of(self.num_points, oversample_ratio=3.0, importance_sample_ratio=0.75)
        generator = torch.Generator().manual_seed(5)
        matching, candidates, random = (
            torch.rand(count, 2, generator=generator)
            for count in (self.num_points, self.plan.num_candidates, self.plan.num_random)
        )
        # we draw candidates and random points at once, the published code one after the other
        self._by_count = {len(points): points for points in (matching, candidates, random)}
        self._by_count[self.plan.num_drawn] = torch.cat((candidates, random))
        assert len(self._by_count) == 4

    def __call__(self, *size: int, device: Any = None) -> Tensor:
        *masks, count, _ = size
        return self._by_count[count].expand(*masks, count, 2).clone()


@pytest.fixture
def shared_points(monkeypatch: pytest.MonkeyPatch) -> SharedPoints:
    points = SharedPoints()
    monkeypatch.setattr(torch, "rand", points)
    return points
