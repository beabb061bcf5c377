"""Calibration of scores, and the score threshold with the best F1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.accumulate import count_objects
from vispeft.evaluation.metrics.matching import Matches
from vispeft.evaluation.metrics.overlaps import Pairs

NUM_BINS = 10
_LAECE_BINS = 25


@dataclass(frozen=True)
class Bin:
    """Detections with a score from `low` to below `high`; the last bin includes `high`.

    score: mean score; precision: share of true positives at IoU 0.5; iou: mean IoU of the true positives
    """

    low: float
    high: float
    count: int
    score: float
    precision: float
    iou: float


@dataclass(frozen=True)
class Calibration:
    """Agreement of scores with precision over all detections, including those with a very low score.

    d_ece: mean absolute difference of score and precision over the bins, weighted by their detections (Küppers et al.,
        Multivariate Confidence Calibration for Object Detection, CVPR Workshops 2020; bins of the score alone)
    la_ece: mean absolute difference of score and precision times IoU, in 25 bins per category, mean over categories
        (Oksuz et al., Towards Building Self-Aware Object Detectors, CVPR 2023; true positives from IoU 0.5)
    bins: the bins that are not empty
    """

    d_ece: float
    la_ece: float
    bins: tuple[Bin, ...]


def calibrate(matches: Matches, pairs: Pairs) -> Calibration | None:
    """Return the calibration at IoU 0.5; None if there are no detections or a score is outside of 0..1.

    pairs: overlapping pairs of each category and image, from IoU 0.5
    """
    is_counted = ~matches.is_ignored[0, 0]
    score, is_true_positive = matches.score[is_counted], matches.is_matched[0, 0][is_counted]
    if not len(score) or score.min() < 0 or score.max() > 1:
        return None
    iou, category = matched_ious(matches, pairs)[is_counted], matches.category_idx[is_counted]
    bins = _bins(score, is_true_positive, iou, NUM_BINS)
    d_ece = sum(one.count * abs(one.score - one.precision) for one in bins) / len(score)
    by_category: list[float] = []
    for index in np.unique(category):
        rows = category == index
        fine = _bins(score[rows], is_true_positive[rows], iou[rows], _LAECE_BINS)
        distance = sum(one.count * abs(one.score - one.precision * one.iou) for one in fine)
        by_category.append(distance / int(rows.sum()))
    return Calibration(d_ece, float(np.mean(by_category)), tuple(bins))


def matched_ious(matches: Matches, pairs: Pairs) -> NDArray[np.float64]:
    """Return the IoU of each detection with its matched object at IoU 0.5, 0 without one: [D]."""
    iou = np.zeros(len(matches.score))
    is_match = matches.object_idx[0][pairs.detection_idx] == pairs.object_idx
    iou[pairs.detection_idx[is_match]] = pairs.iou[is_match]
    return iou


def best_threshold(matches: Matches, num_categories: int) -> float:
    """Return the score threshold with the highest F1 at IoU 0.5 over all categories; 0.5 without true positives."""
    is_counted = ~matches.is_ignored[0, 0]
    score, is_true_positive = matches.score[is_counted], matches.is_matched[0, 0][is_counted]
    if not is_true_positive.any():
        return 0.5
    order = np.argsort(-score, kind="stable")
    score, num_true_positives = score[order], np.cumsum(is_true_positive[order])
    num_objects = int(count_objects(matches, num_categories)[:, 0].sum())
    f1 = 2 * num_true_positives / (np.arange(1, len(score) + 1) + num_objects)
    is_last = np.append(score[1:] < score[:-1], True)  # a threshold keeps all detections of equal score, or none
    return float(score[np.argmax(np.where(is_last, f1, -1))])


def _bins(
    score: NDArray[np.float64], is_true_positive: NDArray[np.bool_], iou: NDArray[np.float64], number: int
) -> list[Bin]:
    """Return the bins of equal width that are not empty."""
    place = np.minimum((score * number).astype(np.int64), number - 1)
    count = np.bincount(place, minlength=number)
    num_true_positives = np.bincount(place, weights=is_true_positive, minlength=number)
    score_sum = np.bincount(place, weights=score, minlength=number)
    iou_sum = np.bincount(place, weights=np.where(is_true_positive, iou, 0.0), minlength=number)
    return [
        Bin(
            low=index / number,
            high=(index + 1) / number,
            count=int(count[index]),
            score=float(score_sum[index] / count[index]),
            precision=float(num_true_positives[index] / count[index]),
            iou=float(iou_sum[index] / num_true_positives[index]) if num_true_positives[index] else 0.0,
        )
        for index in np.flatnonzero(count).tolist()
    ]
