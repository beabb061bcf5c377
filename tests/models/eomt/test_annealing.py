"""The schedule of mask annealing."""

from __future__ import annotations

import pytest

from vispeft.models.eomt.annealing import mask_probabilities


def test_mask_probabilities__begin_at_one_and_end_at_zero() -> None:
    assert mask_probabilities(4, 0, 600) == (1, 1, 1, 1)
    assert mask_probabilities(4, 500, 600) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("step", "block_idx", "expected"), [(100, 0, 1), (150, 0, 0.5**0.9), (200, 0, 0), (425, 3, 0.75**0.9)]
)
def test_mask_probabilities__anneal_the_blocks_one_after_another(step: int, block_idx: int, expected: float) -> None:
    assert mask_probabilities(4, step, 600)[block_idx] == pytest.approx(expected)
