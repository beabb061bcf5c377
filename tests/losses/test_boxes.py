"""Box arithmetic against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from vispeft.losses.boxes import cxcywh_to_xyxy, generalized_iou, iou


def test_cxcywh_to_xyxy__gives_corners() -> None:
    corners = cxcywh_to_xyxy(torch.tensor([[0.5, 0.4, 0.2, 0.6]]))
    torch.testing.assert_close(corners, torch.tensor([[0.4, 0.1, 0.6, 0.7]]))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        pytest.param([0.0, 0.0, 2.0, 2.0], 1.0, id="same"),
        # overlap 1, union 7, hull 9
        pytest.param([1.0, 1.0, 3.0, 3.0], 1 / 7 - 2 / 9, id="overlapping"),
        # no overlap, union 8, hull 4 x 2
        pytest.param([2.0, 0.0, 4.0, 2.0], 0.0, id="touching"),
        # no overlap, union 8, hull 6 x 2
        pytest.param([4.0, 0.0, 6.0, 2.0], -4 / 12, id="apart"),
    ],
)
def test_generalized_iou__is_as_by_hand(other: list[float], expected: float) -> None:
    value = generalized_iou(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor(other))
    torch.testing.assert_close(value, torch.tensor(expected))


def test_iou__is_as_by_hand() -> None:
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [4.0, 0.0, 6.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(iou(others[0], others), torch.tensor([1.0, 1 / 7, 0.0, 0.0]))
    assert iou(others[3], others[3]) == 0


def test_generalized_iou__is_finite_with_gradient_for_empty_boxes() -> None:
    point = torch.full((1, 4), 0.5, requires_grad=True)
    value = generalized_iou(point, torch.full((3, 4), 0.5))
    value.sum().backward()
    assert value.isfinite().all()
    assert point.grad is not None
    assert point.grad.isfinite().all()
