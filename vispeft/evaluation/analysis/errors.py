"""Error analysis by six kinds of error, with the AP gained by correcting each kind alone.

Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020: foreground from an IoU of 0.5,
background up to 0.1. Matching and AP are COCO's at IoU 0.5 (100 detections per image and category, crowds ignored), so
that AP without corrections is AP50.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.accumulate import count_objects, interpolated_precision
from vispeft.evaluation.metrics.detections import Objects
from vispeft.evaluation.metrics.matching import Matches
from vispeft.evaluation.metrics.overlaps import Pairs

FOREGROUND, BACKGROUND = 0.5, 0.1
# kinds of false positives, in the order in which they are assigned; the sixth kind, `missed`, is a false negative
KINDS = ("localisation", "classification", "duplicate", "background", "both")


@dataclass(frozen=True)
class Errors:
    """Errors by kind.

    ap50: AP50 without corrections
    counts: number of detections of each kind of error, and of `missed` objects, which are false negatives without an
        overlapping classification or localisation error
    gains: AP50 gained by correcting all errors of one kind. A wrong class or localisation is corrected, or removed if
        the object has a true positive already. Duplicates, background and both are removed. Missed objects are not
        counted.
    gain_false_positives, gain_false_negatives: AP50 gained by ranking every false positive last, or by counting no
        false negative
    """

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float]
    gain_false_positives: float
    gain_false_negatives: float


def decompose_errors(matches: Matches, overlaps: Pairs, num_categories: int) -> Errors:
    """Return the errors of matched results. overlaps: pairs of each image across categories, from IoU 0.1"""
    scored, objects = _ScoredDetections.of(matches, num_categories), matches.objects
    kind, target = _kinds(matches, overlaps, scored)
    base = scored.ap50()
    is_correctable = _best_of_each_target(scored, target)
    is_false_negative = ~objects.is_ignored[:, 0] & ~scored.is_detected(len(objects.area))
    is_missed = is_false_negative.copy()
    is_missed[np.unique(target[target >= 0])] = False
    counts, gains = {}, {}
    for number, name in enumerate(KINDS):
        is_kind = kind == number
        is_corrected = is_kind & is_correctable
        category_idx = scored.category_idx.copy()
        category_idx[is_corrected] = objects.category_idx[target[is_corrected]]
        corrected = replace(
            scored,
            category_idx=category_idx,
            is_true_positive=scored.is_true_positive | is_corrected,
            is_counted=scored.is_counted & (~is_kind | is_corrected),
        )
        counts[name], gains[name] = int(is_kind.sum()), max(corrected.ap50() - base, 0.0)
    counts["missed"] = int(is_missed.sum())
    gains["missed"] = _gain_without(scored, objects, is_missed)
    ranked_last = replace(scored, is_counted=scored.is_true_positive)
    return Errors(base, counts, gains, ranked_last.ap50() - base, _gain_without(scored, objects, is_false_negative))


@dataclass(frozen=True)
class _ScoredDetections:
    """Detections scored at IoU 0.5 against objects of all sizes.

    category_idx: [D] int64
    object_idx: [D] int64, index of the matched object, -1 without one
    score: [D]
    is_true_positive, is_counted: [D] bool
    num_objects: [K] int64
    """

    category_idx: NDArray[np.int64]
    score: NDArray[np.float64]
    is_true_positive: NDArray[np.bool_]
    is_counted: NDArray[np.bool_]
    object_idx: NDArray[np.int64]
    num_objects: NDArray[np.int64]

    @classmethod
    def of(cls, matches: Matches, num_categories: int) -> _ScoredDetections:
        is_counted = ~matches.is_ignored[0, 0]
        is_true_positive = matches.is_matched[0, 0] & is_counted
        num_objects = count_objects(matches, num_categories)[:, 0]
        return cls(
            matches.category_idx, matches.score, is_true_positive, is_counted, matches.object_idx[0], num_objects
        )

    def is_detected(self, num_objects: int) -> NDArray[np.bool_]:
        """Return a mask of the objects that have a true positive: [G]. num_objects: G"""
        is_detected = np.zeros(num_objects, dtype=bool)
        is_detected[self.object_idx[self.is_true_positive]] = True
        return is_detected

    def ap50(self) -> float:
        """Return AP50, mean over the categories that have objects; 0 if none has."""
        order = np.lexsort((-self.score, self.category_idx))
        order = order[self.is_counted[order]]
        bounds = np.searchsorted(self.category_idx[order], np.arange(len(self.num_objects) + 1))
        category_aps = []
        for index in np.flatnonzero(self.num_objects > 0).tolist():
            rows = order[bounds[index] : bounds[index + 1]]
            precision = interpolated_precision(
                self.is_true_positive[rows], self.is_counted[rows], int(self.num_objects[index])
            )
            category_aps.append(precision.mean())
        return float(np.mean(category_aps)) if category_aps else 0.0


def _gain_without(scored: _ScoredDetections, objects: Objects, is_removed: NDArray[np.bool_]) -> float:
    """Return the AP50 gained by not counting some objects. is_removed: [G]"""
    removed = np.bincount(objects.category_idx[is_removed], minlength=len(scored.num_objects))
    return max(replace(scored, num_objects=scored.num_objects - removed).ap50() - scored.ap50(), 0.0)


def _kinds(matches: Matches, overlaps: Pairs, scored: _ScoredDetections) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the kind of each detection's error and the object that it should have matched: [D] each.

    The kind is an index into `KINDS`, -1 without error. The object is given for a classification or localisation error;
    it is -1 for other kinds and if the object has a true positive already.
    """
    objects = matches.objects
    is_usable = ~objects.is_crowd[overlaps.object_idx]
    pairs = Pairs(overlaps.detection_idx[is_usable], overlaps.object_idx[is_usable], overlaps.iou[is_usable])
    is_same_category = scored.category_idx[pairs.detection_idx] == objects.category_idx[pairs.object_idx]
    is_detected = scored.is_detected(len(objects.area))
    num_detections = len(scored.category_idx)
    same, same_object = _best(pairs, is_same_category, num_detections)
    other, other_object = _best(pairs, ~is_same_category, num_detections)
    taken, _ = _best(pairs, is_same_category & is_detected[pairs.object_idx], num_detections)
    conditions = [
        (same >= BACKGROUND) & (same <= FOREGROUND),
        other >= FOREGROUND,
        taken >= FOREGROUND,
        np.maximum(same, other) <= BACKGROUND,
    ]
    kind = np.select(conditions, [0, 1, 2, 3], default=4)
    kind = np.where(scored.is_counted & ~scored.is_true_positive, kind, -1)
    target = np.select([kind == 0, kind == 1], [same_object, other_object], default=-1)
    is_open = (target >= 0) & ~np.append(is_detected, True)[target]
    return kind, np.where(is_open, target, -1)


def _best(
    pairs: Pairs, is_used: NDArray[np.bool_], num_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the highest IoU of each detection in the used pairs, 0 without one, and its object: [D] each."""
    best, best_object = np.zeros(num_detections), np.full(num_detections, -1)
    detection_idx, object_idx, iou = pairs.detection_idx[is_used], pairs.object_idx[is_used], pairs.iou[is_used]
    order = np.lexsort((-object_idx, iou))  # the last write wins: the highest IoU, for ties the first object
    best[detection_idx[order]] = iou[order]
    best_object[detection_idx[order]] = object_idx[order]
    return best, best_object


def _best_of_each_target(scored: _ScoredDetections, target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a mask of the detections with the highest score for their target object: [D].

    target: [D] int64, -1 without a target
    """
    rows = np.flatnonzero(target >= 0)
    rows = rows[np.lexsort((-scored.score[rows], target[rows]))]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = target[rows][1:] != target[rows][:-1]
    is_best = np.zeros(len(target), dtype=bool)
    is_best[rows[first]] = True
    return is_best
