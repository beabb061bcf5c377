"""Precision, recall and COCO's twelve metrics from matches, with the floating-point arithmetic of pycocotools.

Precision increases only at a true positive, so that curves are computed at true positives alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.matching import AREA_NAMES, AREA_RANGES, IOU_THRESHOLDS, MAX_DETECTIONS, Matches

RECALLS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
# in the order of COCOeval.stats
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Curves:
    """Precision-recall curves, as in pycocotools' `eval`: -1 where a category has no objects of a size.

    precision, scores: [T, R, K, A, M] at IoU thresholds, recalls, categories, size ranges and detections per image
    recall: [T, K, A, M]
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]

    def category_precisions(self) -> list[float]:
        """Return the AP of each category by ascending id: all sizes, the most detections; -1 without objects."""
        precision = np.moveaxis(self.precision[:, :, :, 0, -1], 2, 0)  # [K, T, R]
        return [mean_of_defined(category) for category in precision]


def accumulate(matches: Matches, num_categories: int, limits: Sequence[int] = MAX_DETECTIONS) -> Curves:
    """Return the precision at each recall, and the highest recall, of every category.

    limits: detections of each image, M of them, ascending; at most as many as were matched
    """
    sizes = len(IOU_THRESHOLDS), len(RECALLS), num_categories, len(AREA_RANGES), len(limits)
    precision, scores = -np.ones(sizes), -np.ones(sizes)
    recall = -np.ones((sizes[0], *sizes[2:]))
    num_objects = count_objects(matches, num_categories)  # [K, A]
    bounds = np.searchsorted(matches.category_idx, np.arange(num_categories + 1))
    for category in np.flatnonzero(num_objects.any(axis=1)).tolist():
        rows = np.arange(bounds[category], bounds[category + 1])
        rows = rows[np.argsort(-matches.score[rows], kind="stable")]
        for limit_idx, limit in enumerate(limits):
            kept = rows[matches.ranked.rank[rows] < limit]
            score = matches.score[kept]
            for area in np.flatnonzero(num_objects[category]).tolist():
                is_counted = ~matches.is_ignored[area][:, kept]
                is_true_positive = matches.is_matched[area][:, kept] & is_counted
                place = category, area, limit_idx
                for threshold in range(len(IOU_THRESHOLDS)):
                    curve = _curve(
                        is_true_positive[threshold], is_counted[threshold], score, num_objects[category, area]
                    )
                    precision[(threshold, slice(None), *place)] = curve.precision
                    scores[(threshold, slice(None), *place)] = curve.scores
                    recall[(threshold, *place)] = curve.recall
    return Curves(precision, recall, scores)


def count_objects(matches: Matches, num_categories: int) -> NDArray[np.int64]:
    """Count the ground-truth objects that are not ignored, by category and size range: [K, A]."""
    counted = ~matches.objects.is_ignored
    counts = [np.bincount(matches.objects.category_idx[column], minlength=num_categories) for column in counted.T]
    return np.stack(counts, axis=1)


def interpolated_precision(
    is_true_positive: NDArray[np.bool_], is_counted: NDArray[np.bool_], num_objects: int
) -> NDArray[np.float64]:
    """Return the precision at the 101 recalls of one curve.

    is_true_positive, is_counted: [n] bool, best score first; a true positive is always counted
    """
    return _curve(is_true_positive, is_counted, np.zeros(len(is_true_positive)), num_objects).precision


def coco_stats(curves: Curves) -> dict[str, float]:
    """Return the twelve metrics by their names, -1 where undefined."""
    precision, recall = curves.precision, curves.recall
    values = [mean_of_defined(precision[..., 0, -1])]
    values += [mean_of_defined(precision[np.equal(IOU_THRESHOLDS, threshold)][..., 0, -1]) for threshold in (0.5, 0.75)]
    values += [mean_of_defined(precision[..., area, -1]) for area in range(1, len(AREA_NAMES))]
    values += [mean_of_defined(recall[..., 0, limit]) for limit in range(len(MAX_DETECTIONS))]
    values += [mean_of_defined(recall[..., area, -1]) for area in range(1, len(AREA_NAMES))]
    return dict(zip(METRIC_NAMES, values, strict=True))


def stats_at(matches: Matches, num_categories: int, limit: int) -> dict[str, float]:
    """Return `AP@limit` and `AR@limit`: average precision and recall with so many detections of a class in an image.

    They are pycocotools' with `params.maxDets = [1, 10, limit]`. matches: of at least as many detections
    """
    curves = accumulate(matches, num_categories, (limit,))
    return {
        f"AP@{limit}": mean_of_defined(curves.precision[..., 0, -1]),
        f"AR@{limit}": mean_of_defined(curves.recall[..., 0, -1]),
    }


def mean_of_defined(values: NDArray[np.float64]) -> float:
    """Return the mean of the values other than -1; -1 if there are none."""
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0


@dataclass(frozen=True)
class _Curve:
    """Precision and score at each recall, and the highest recall, of one category."""

    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    recall: float


def _curve(
    is_true_positive: NDArray[np.bool_], is_counted: NDArray[np.bool_], score: NDArray[np.float64], num_objects: int
) -> _Curve:
    """Return one curve of one category. is_true_positive, is_counted, score: [n], best score first."""
    true_positives = np.flatnonzero(is_true_positive)
    num_true_positives = np.arange(1, len(true_positives) + 1, dtype=np.float64)
    num_false_positives = np.cumsum(is_counted)[true_positives] - num_true_positives
    values = num_true_positives / (num_false_positives + num_true_positives + np.spacing(1))
    best_after = np.maximum.accumulate(values[::-1])[::-1]
    recall = num_true_positives / num_objects
    reached = np.searchsorted(recall, RECALLS, side="left")
    reached = reached[reached < len(true_positives)]
    precision, scores = np.zeros(len(RECALLS)), np.zeros(len(RECALLS))
    precision[: len(reached)] = best_after[reached]
    scores[: len(reached)] = score[true_positives[reached]]
    scores[:1] = score[:1] if len(score) else 0.0
    return _Curve(precision, scores, float(recall[-1]) if len(true_positives) else 0.0)
