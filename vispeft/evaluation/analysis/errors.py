"""Error analysis by six kinds of error, with the AP gained by correcting each kind alone.

Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020: foreground from an IoU of 0.5,
background up to 0.1. Matching and AP are COCO's at IoU 0.5 (100 detections per image and category, crowds ignored), so
that the starting point is AP50.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.accumulate import count_objects, interpolated_precision
from vispeft.evaluation.metrics.matching import Matches, Pairs

FOREGROUND, BACKGROUND = 0.5, 0.1
# of detections that are wrong, in the order in which they are told apart; objects can be missed besides
KINDS = ("localisation", "classification", "duplicate", "background", "both")


@dataclass(frozen=True)
class Errors:
    """Errors by kind.

    ap50: AP50 without corrections
    counts: detections of each kind of error, and `missed` objects: false negatives that no classification or
        localisation error overlaps
    gains: AP50 gained by correcting all errors of one kind: a wrong class or localisation is corrected, or removed
        where the object has a true positive already; duplicates, background and both are removed; missed objects are
        not counted
    gain_false_positives, gain_false_negatives: AP50 gained by ranking every false positive last, or by counting no
        false negative
    """

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float]
    gain_false_positives: float
    gain_false_negatives: float


def decompose_errors(matches: Matches, overlaps: Pairs, num_categories: int) -> Errors:
    """Return the errors of matched results. overlaps: pairs of each image, of any categories, from IoU 0.1."""
    state = _State.of(matches, num_categories)
    kind, target = _kinds(matches, overlaps, state)
    base = _mean_ap(state, state.category, state.is_right, state.is_counted, state.num_objects)
    is_mended = _best_of_each_target(state, target)
    usable = np.unique(target[target >= 0])
    truths = matches.truths
    is_found = np.zeros(len(truths.area), dtype=bool)
    is_found[state.truth[state.is_right]] = True
    is_missed = ~truths.is_ignored[:, 0] & ~is_found
    is_uncovered = is_missed.copy()
    is_uncovered[usable] = False
    counts, gains = {}, {}
    for number, name in enumerate(KINDS):
        is_kind = kind == number
        mended = is_kind & is_mended
        category = np.where(mended, truths.category_idx[target], state.category) if len(truths.area) else state.category
        ap = _mean_ap(
            state, category, state.is_right | mended, state.is_counted & (~is_kind | mended), state.num_objects
        )
        counts[name], gains[name] = int(is_kind.sum()), max(ap - base, 0.0)
    for name, gone in (("missed", is_uncovered), ("all missed", is_missed)):
        asked = state.num_objects - np.bincount(truths.category_idx[gone], minlength=num_categories)
        gains[name] = max(_mean_ap(state, state.category, state.is_right, state.is_counted, asked) - base, 0.0)
    counts["missed"] = int(is_uncovered.sum())
    ordered = _mean_ap(state, state.category, state.is_right, state.is_right, state.num_objects)
    return Errors(base, counts, gains, ordered - base, gains.pop("all missed"))


@dataclass(frozen=True)
class _State:
    """Scored detections at IoU 0.5 and objects of all sizes. All: [D], num_objects: [K]; truth: -1 where none."""

    category: NDArray[np.int64]
    score: NDArray[np.float64]
    is_right: NDArray[np.bool_]
    is_counted: NDArray[np.bool_]
    truth: NDArray[np.int64]
    num_objects: NDArray[np.int64]

    @classmethod
    def of(cls, matches: Matches, num_categories: int) -> _State:
        is_counted = ~matches.is_ignored[0, 0]
        is_right = matches.is_matched[0, 0] & is_counted
        num_objects = count_objects(matches, num_categories)[:, 0]
        return cls(matches.category_idx, matches.score, is_right, is_counted, matches.truth[0], num_objects)


def _kinds(matches: Matches, overlaps: Pairs, state: _State) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the kind of each detection's error and the object that it should have matched: [D] each.

    The kind is an index into `KINDS`, -1 without error. The object is that of a classification or localisation error,
    -1 where there is none or it has a true positive already.
    """
    truths = matches.truths
    is_usable = ~truths.is_crowd[overlaps.truth]
    detection, truth, iou = (column[is_usable] for column in (overlaps.detection, overlaps.truth, overlaps.iou))
    is_same = state.category[detection] == truths.category_idx[truth]
    is_found = np.zeros(len(truths.area), dtype=bool)
    is_found[state.truth[state.is_right]] = True
    number = len(state.category)
    same, same_truth = _best(detection[is_same], truth[is_same], iou[is_same], number)
    other, other_truth = _best(detection[~is_same], truth[~is_same], iou[~is_same], number)
    is_taken = is_same & is_found[truth]
    taken, _ = _best(detection[is_taken], truth[is_taken], iou[is_taken], number)
    conditions = [
        (same >= BACKGROUND) & (same <= FOREGROUND),
        other >= FOREGROUND,
        taken >= FOREGROUND,
        np.maximum(same, other) <= BACKGROUND,
    ]
    kind = np.select(conditions, [0, 1, 2, 3], default=4)
    kind = np.where(state.is_counted & ~state.is_right, kind, -1)
    target = np.select([kind == 0, kind == 1], [same_truth, other_truth], default=-1)
    is_open = (target >= 0) & ~np.append(is_found, True)[target]
    return kind, np.where(is_open, target, -1)


def _best(
    detection: NDArray[np.int64], truth: NDArray[np.int64], iou: NDArray[np.float64], number: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the highest IoU of each detection, 0 where it overlaps nothing, and the object of it: [D] each."""
    best, best_truth = np.zeros(number), np.full(number, -1)
    order = np.lexsort((-truth, iou))  # of equal ones the first object stands last
    best[detection[order]] = iou[order]
    best_truth[detection[order]] = truth[order]
    return best, best_truth


def _best_of_each_target(state: _State, target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which detections have the highest score of all with the same target object: [D].

    target: [D] int64, -1 where there is none
    """
    rows = np.flatnonzero(target >= 0)
    rows = rows[np.lexsort((-state.score[rows], target[rows]))]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = target[rows][1:] != target[rows][:-1]
    is_best = np.zeros(len(target), dtype=bool)
    is_best[rows[first]] = True
    return is_best


def _mean_ap(
    state: _State,
    category: NDArray[np.int64],
    is_right: NDArray[np.bool_],
    is_counted: NDArray[np.bool_],
    num_objects: NDArray[np.int64],
) -> float:
    """Return the AP50 of changed detections, mean over the categories that have objects; 0 if none has."""
    order = np.lexsort((-state.score, category))
    order = order[is_counted[order]]
    bounds = np.searchsorted(category[order], np.arange(len(num_objects) + 1))
    figures = []
    for index in np.flatnonzero(num_objects > 0).tolist():
        rows = order[bounds[index] : bounds[index + 1]]
        figures.append(interpolated_precision(is_right[rows], is_counted[rows], int(num_objects[index])).mean())
    return float(np.mean(figures)) if figures else 0.0
