"""Precision, recall and COCO's twelve metrics from matches, with the floating-point arithmetic of pycocotools.

Precision increases only at a true positive, so that curves are computed at true positives alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.detections import AREA_NAMES, IOU_THRESHOLDS, MAX_DETECTIONS
from vispeft.evaluation.metrics.matching import Matches, bits_at

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
    num_objects = count_objects(matches, num_categories)  # [K, A]
    reached = _true_positives_needed(num_objects)  # [K, A, R]
    order = matches.ranked.by_score
    curves = [_curves(matches, order[matches.ranked.rank[order] < limit], num_objects, reached) for limit in limits]
    return Curves(
        np.stack([one.precision for one in curves], axis=-1),
        np.stack([one.recall for one in curves], axis=-1),
        np.stack([one.scores for one in curves], axis=-1),
    )


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
    true_positives = np.flatnonzero(is_true_positive)
    numbers = np.arange(1, len(true_positives) + 1, dtype=np.float64)
    num_counted = np.cumsum(is_counted, dtype=np.int64)[true_positives]
    best_after = np.maximum.accumulate(_precisions(numbers, num_counted)[::-1])[::-1]
    reached = _true_positives_needed(np.array([num_objects]))[0]
    reached = reached[reached < len(true_positives)]
    precision = np.zeros(len(RECALLS))
    precision[: len(reached)] = best_after[reached]
    return precision


def coco_stats(curves: Curves) -> dict[str, float]:
    """Return the twelve metrics of curves with COCO's limits by their names, -1 where undefined."""
    recalls = [curves.recall[..., 0, limit] for limit in range(len(MAX_DETECTIONS))]
    return _stats(curves.precision[..., -1], curves.recall[..., -1], recalls)


def coco_summary(matches: Matches, num_categories: int) -> tuple[dict[str, float], list[float]]:
    """Return the twelve metrics by their names and the AP of each category, -1 where undefined.

    They are those of all curves, but only the highest recall is computed for the lower limits of detections.
    """
    curves = accumulate(matches, num_categories, MAX_DETECTIONS[-1:])
    num_objects = count_objects(matches, num_categories)[:, 0]
    recalls = [_highest_recall(matches, num_objects, limit) for limit in MAX_DETECTIONS[:-1]]
    stats = _stats(curves.precision[..., -1], curves.recall[..., -1], [*recalls, curves.recall[..., 0, -1]])
    return stats, curves.category_precisions()


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


def _stats(
    precision: NDArray[np.float64], recall: NDArray[np.float64], recalls: Sequence[NDArray[np.float64]]
) -> dict[str, float]:
    """Return the twelve metrics by their names.

    precision, recall: [T, R, K, A] and [T, K, A], with the most detections
    recalls: [T, K] for each limit of detections, with objects of all sizes
    """
    values = [mean_of_defined(precision[..., 0])]
    values += [mean_of_defined(precision[np.equal(IOU_THRESHOLDS, threshold)][..., 0]) for threshold in (0.5, 0.75)]
    values += [mean_of_defined(precision[..., area]) for area in range(1, len(AREA_NAMES))]
    values += [mean_of_defined(one) for one in recalls]
    values += [mean_of_defined(recall[..., area]) for area in range(1, len(AREA_NAMES))]
    return dict(zip(METRIC_NAMES, values, strict=True))


def _highest_recall(matches: Matches, num_objects: NDArray[np.int64], limit: int) -> NDArray[np.float64]:
    """Return the highest recall of objects of all sizes: [T, K]. num_objects: [K]; limit: detections of each image"""
    rows = np.flatnonzero((matches.ranked.rank < limit) & (matches.matched > 0))
    category, matched, counted = matches.category_idx[rows], matches.matched[rows], ~matches.ignored[rows]
    recall = np.empty((len(IOU_THRESHOLDS), len(num_objects)))
    for threshold, row in enumerate(recall):
        found = category[bits_at(matched & counted, 0, threshold)]
        row[:] = np.bincount(found, minlength=len(num_objects)) / np.maximum(num_objects, 1)
    recall[:, num_objects == 0] = -1.0
    return recall


def _true_positives_needed(num_objects: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many true positives come before the one that reaches each recall: [..., R]. num_objects: [...]"""
    numbers, places = np.unique(num_objects, return_inverse=True)
    rows = [np.searchsorted(np.arange(1, number + 1) / max(number, 1), RECALLS, side="left") for number in numbers]
    return np.stack(rows)[places.reshape(num_objects.shape)]


def _precisions(num_true_positives: NDArray[np.float64], num_counted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return precision at true positives. num_counted: detections up to and including each one that are not ignored"""
    num_false_positives = num_counted - num_true_positives
    values: NDArray[np.float64] = num_true_positives / (num_false_positives + num_true_positives + np.spacing(1))
    return values


def _curves(
    matches: Matches, rows: NDArray[np.int64], num_objects: NDArray[np.int64], reached: NDArray[np.int64]
) -> Curves:
    """Return the curves of one limit of detections, without the last axis.

    rows: [n], detections by category and falling score; num_objects: [K, A]; reached: [K, A, R], of
        `_true_positives_needed`
    """
    num_categories, num_areas = num_objects.shape
    begins = np.searchsorted(matches.category_idx[rows], np.arange(num_categories + 1))
    score, matched, ignored = matches.score[rows], matches.matched[rows], matches.ignored[rows]
    best_score = np.where(np.diff(begins) > 0, np.append(score, 0.0)[begins[:-1]], 0.0)  # [K]
    sizes = len(IOU_THRESHOLDS), len(RECALLS), num_categories, num_areas
    precision, scores, recall = np.empty(sizes), np.empty(sizes), np.empty((sizes[0], *sizes[2:]))
    hits = np.flatnonzero(matched)  # detections without any match are ignored at all thresholds or at none
    score, matched, ignored_hits, hit_begins = score[hits], matched[hits], ignored[hits], np.searchsorted(hits, begins)
    for area in range(num_areas):
        is_missed = ~bits_at(ignored, area, 0)
        is_missed[hits] = False
        num_missed = _count_before(is_missed)
        for threshold in range(len(IOU_THRESHOLDS)):
            is_counted = ~bits_at(ignored_hits, area, threshold)
            true_positives = np.flatnonzero(bits_at(matched, area, threshold) & is_counted)
            num_counted = _count_before(is_counted)
            firsts = np.searchsorted(true_positives, hit_begins)
            number = np.diff(firsts)  # [K]
            ordinal = np.arange(1, len(true_positives) + 1) - np.repeat(firsts[:-1], number)
            counted = num_counted[true_positives + 1] + num_missed[hits[true_positives]]
            counted -= np.repeat(num_counted[hit_begins[:-1]] + num_missed[begins[:-1]], number)
            values = np.append(_precisions(ordinal.astype(np.float64), counted), 0.0)
            is_reached = reached[:, area] < number[:, None]  # [K, R]
            places = firsts[:-1, None] + np.minimum(reached[:, area], number[:, None])
            # the best between one recall and the next, then from each recall on
            best = np.where(is_reached, np.maximum.reduceat(values, places.ravel()).reshape(places.shape), 0.0)
            precision[threshold, :, :, area] = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1].T
            scores[threshold, :, :, area] = np.where(is_reached, np.append(score[true_positives], 0.0)[places], 0.0).T
            recall[threshold, :, area] = number / np.maximum(num_objects[:, area], 1)
    scores[:, 0] = best_score[:, None]
    is_undefined = num_objects == 0
    precision[:, :, is_undefined] = scores[:, :, is_undefined] = recall[:, is_undefined] = -1.0
    return Curves(precision, recall, scores)


def _count_before(is_set: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of true elements before each index: [N + 1]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(is_set, dtype=np.int64)])
