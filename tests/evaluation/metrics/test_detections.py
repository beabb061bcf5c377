"""Order of the detections that are scored."""

import numpy as np
import pytest

from vispeft.evaluation.metrics.detections import rank_detections


@pytest.mark.parametrize("num_images", [7, 2**17])
def test_rank_detections__is_pycocotools_order(num_images: int) -> None:
    generator = np.random.default_rng(0)
    image_idx = generator.integers(0, 7, 400) * (num_images // 7)
    category_idx = generator.integers(0, 3, 400)
    score = generator.integers(0, 5, 400) / 4  # with many ties
    ranked = rank_detections(image_idx, category_idx, score, num_images, limit=6)
    cell = category_idx * num_images + image_idx
    row = np.lexsort((-score, cell))
    rank = np.array([np.count_nonzero(cell[row[:place]] == cell[row[place]]) for place in range(400)])
    row, rank = row[rank < 6], rank[rank < 6]
    np.testing.assert_array_equal(ranked.row, row)
    np.testing.assert_array_equal(ranked.cell, cell[row])
    np.testing.assert_array_equal(ranked.rank, rank)
    np.testing.assert_array_equal(ranked.by_score, np.lexsort((-score[row], category_idx[row])))
    assert len(row) < 400


def test_rank_detections__of_nothing() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert len(rank_detections(nothing, nothing, np.zeros(0), 3).by_score) == 0
