"""Equality with every number that pycocotools computes, bit by bit, on inputs that reveal differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vispeft.evaluation.metrics.accumulate import accumulate, coco_stats, coco_summary, interpolated_precision
from vispeft.evaluation.metrics.coco import read_scored

Function = Callable[..., Any]


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(12))
def test_accumulate__equals_pycocotools_bit_by_bit(
    seed: int, kind: str, adversarial_case: Function, pycocotools_evaluation: Function
) -> None:
    annotations, results = adversarial_case(seed)
    expected = pycocotools_evaluation(annotations, results, kind)
    scored = read_scored(annotations, results)
    matches, num_categories = scored.match(kind), len(scored.category_ids)
    curves = accumulate(matches, num_categories)
    np.testing.assert_array_equal(curves.precision, expected.eval["precision"], strict=True)
    np.testing.assert_array_equal(curves.recall, expected.eval["recall"], strict=True)
    np.testing.assert_array_equal(curves.scores, expected.eval["scores"], strict=True)
    assert list(coco_stats(curves).values()) == expected.stats.tolist()
    assert coco_summary(matches, num_categories) == (coco_stats(curves), curves.category_precisions())
    assert expected.stats[0] > 0


def test_accumulate__more_than_a_hundred_detections_are_cut(adversarial_case: Function) -> None:
    annotations, results = adversarial_case(0)
    scored = read_scored(annotations, results)
    assert len(scored.match("segm").ranked.row) < len(results)


def test_interpolated_precision__of_a_curve_by_hand() -> None:
    is_true_positive = np.array([True, False, True, False])
    precision = interpolated_precision(is_true_positive, np.ones(4, dtype=bool), 4)
    np.testing.assert_allclose(precision, [1.0] * 26 + [2 / 3] * 25 + [0.0] * 50)


def test_interpolated_precision__what_is_not_counted_does_not_harm() -> None:
    is_true_positive, is_counted = np.array([False, True]), np.array([False, True])
    assert interpolated_precision(is_true_positive, is_counted, 1).min() == pytest.approx(1.0)
