"""The published schedule of mask annealing."""

import pytest

from vispeft.models.eomt.annealing import mask_probabilities


def test_mask_probabilities__fall_block_by_block() -> None:
    steps = 60  # six parts of 10 for four blocks
    assert mask_probabilities(4, 0, steps) == (1.0, 1.0, 1.0, 1.0)
    assert mask_probabilities(4, 10, steps) == (1.0, 1.0, 1.0, 1.0)
    assert mask_probabilities(4, 20, steps) == (0.0, 1.0, 1.0, 1.0)
    assert mask_probabilities(4, 50, steps) == mask_probabilities(4, 60, steps) == (0.0, 0.0, 0.0, 0.0)
    assert mask_probabilities(4, 35, steps) == pytest.approx((0.0, 0.0, 0.5**0.9, 1.0))
