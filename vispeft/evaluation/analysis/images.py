"""Metrics of each image and the confusion matrix, for detections from a score threshold on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.accumulate import interpolated_precision
from vispeft.evaluation.metrics.matching import IOU_THRESHOLDS, Matches, Pairs


@dataclass(frozen=True)
class ImageScore:
    """Metrics of one image, of detections from the score threshold on, at IoU 0.5.

    ap: COCO's AP of this image alone; -1 where it has no objects
    num_right, num_wrong, num_missed: true positives, false positives, false negatives
    f1: 2 TP / (2 TP + FP + FN); -1 where there are neither objects nor detections
    """

    image_id: int
    ap: float
    num_right: int
    num_wrong: int
    num_missed: int
    f1: float


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix at IoU 0.5 from a score on; each detection is paired with the object it fits best.

    names: of the categories; rows and columns have one more
    counts: rows are annotated categories, the last row is background; columns are predicted categories, the last
        column is false negatives
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def score_images(matches: Matches, image_ids: Sequence[int], threshold: float) -> tuple[ImageScore, ...]:
    """Return the metrics of every image, by ascending id."""
    num_images = len(image_ids)
    is_used = ~matches.is_ignored[0, 0] & (matches.score >= threshold)
    is_right = is_used & matches.is_matched[0, 0]
    right = np.bincount(matches.image_idx[is_right], minlength=num_images)
    wrong = np.bincount(matches.image_idx[is_used], minlength=num_images) - right
    truths = matches.truths
    wanted = np.bincount(truths.image_idx[~truths.is_ignored[:, 0]], minlength=num_images)
    missed = wanted - right
    total = 2 * right + wrong + missed
    f1 = np.where(total > 0, 2 * right / np.maximum(total, 1), -1.0)
    columns = (column.tolist() for column in (image_ap(matches, num_images), right, wrong, missed, f1))
    return tuple(ImageScore(*row) for row in zip(image_ids, *columns, strict=True))


def worst_images(images: Sequence[ImageScore], number: int = 20) -> tuple[int, ...]:
    """Return the ids of the images with the lowest F1, ties by lower AP; perfect images are left out."""
    # precision is 1 less a rounding
    bad = [image for image in images if image.f1 >= 0 and (image.f1 < 1 or -1 < image.ap < 1 - 1e-9)]
    bad.sort(key=lambda image: (image.f1, image.ap, -image.num_wrong - image.num_missed))
    return tuple(image.image_id for image in bad[:number])


def image_ap(matches: Matches, num_images: int) -> NDArray[np.float64]:
    """Return COCO's AP of each image alone: [I], the mean over the categories of its objects; -1 without objects."""
    truths = matches.truths
    is_counted = ~truths.is_ignored[:, 0]
    cells, num_objects = np.unique(
        truths.category_idx[is_counted] * num_images + truths.image_idx[is_counted], return_counts=True
    )
    starts, stops = (np.searchsorted(matches.ranked.cell, cells, side=side) for side in ("left", "right"))
    totals, counts = np.zeros(num_images), np.zeros(num_images)
    for cell, number, start, stop in zip(*(a.tolist() for a in (cells, num_objects, starts, stops)), strict=True):
        counted = ~matches.is_ignored[0, :, start:stop]
        right = matches.is_matched[0, :, start:stop] & counted
        rows = [
            interpolated_precision(right[t], counted[t], number) for t in range(len(IOU_THRESHOLDS)) if right[t].any()
        ]
        totals[cell % num_images] += sum(row.mean() for row in rows) / len(IOU_THRESHOLDS)
        counts[cell % num_images] += 1
    ap: NDArray[np.float64] = np.where(counts > 0, totals / np.maximum(counts, 1), -1.0)
    return ap


def confuse(matches: Matches, overlaps: Pairs, names: Sequence[str], threshold: float) -> Confusion:
    """Return the confusion matrix. overlaps: pairs of each image, of any categories"""
    truths, number = matches.truths, len(names)
    is_used = (matches.score >= threshold) & ~matches.is_ignored[0, 0]
    is_near = (overlaps.iou >= IOU_THRESHOLDS[0]) & is_used[overlaps.detection]
    detection, truth, iou = (column[is_near] for column in (overlaps.detection, overlaps.truth, overlaps.iou))
    is_crowd = truths.is_crowd[truth]
    is_excused = np.zeros(len(is_used), dtype=bool)
    is_excused[detection[is_crowd]] = True
    detection, truth, iou = detection[~is_crowd], truth[~is_crowd], iou[~is_crowd]
    order = np.lexsort((-iou, detection, -matches.score[detection]))
    is_free, is_asked = is_used.copy(), ~truths.is_ignored[:, 0]
    counts = np.zeros((number + 1, number + 1), dtype=np.int64)
    for found, sought in zip(detection[order].tolist(), truth[order].tolist(), strict=True):
        if is_free[found] and is_asked[sought]:
            is_free[found] = is_asked[sought] = False
            counts[truths.category_idx[sought], matches.category_idx[found]] += 1
    counts[number, :number] = np.bincount(matches.category_idx[is_free & ~is_excused], minlength=number)
    counts[:number, number] = np.bincount(truths.category_idx[is_asked], minlength=number)
    return Confusion(tuple(names), tuple(tuple(row) for row in counts.tolist()))
