"""Metrics of each image and the confusion matrix, for detections from a score threshold on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.accumulate import interpolated_precision
from vispeft.evaluation.metrics.detections import IOU_THRESHOLDS
from vispeft.evaluation.metrics.matching import Matches
from vispeft.evaluation.metrics.overlaps import Pairs


@dataclass(frozen=True)
class ImageScore:
    """Metrics of one image at IoU 0.5, for detections from the score threshold on.

    ap: COCO's AP of this image alone; -1 without objects
    f1: 2 TP / (2 TP + FP + FN); -1 without objects and detections
    """

    image_id: int
    ap: float
    true_positives: int
    false_positives: int
    false_negatives: int
    f1: float


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix of detections from a score threshold on, each paired with the object of highest IoU from 0.5 on.

    names: category names, without background
    counts: rows are annotated categories and, last, background; columns are predicted categories and, last, false
        negatives
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def score_images(matches: Matches, image_ids: Sequence[int], threshold: float) -> tuple[ImageScore, ...]:
    """Return the metrics of every image, by ascending id."""
    num_images = len(image_ids)
    is_used = ~matches.is_ignored[0, 0] & (matches.score >= threshold)
    is_true_positive = is_used & matches.is_matched[0, 0]
    true_positives = np.bincount(matches.image_idx[is_true_positive], minlength=num_images)
    false_positives = np.bincount(matches.image_idx[is_used], minlength=num_images) - true_positives
    objects = matches.objects
    num_objects = np.bincount(objects.image_idx[~objects.is_ignored[:, 0]], minlength=num_images)
    false_negatives = num_objects - true_positives
    total = 2 * true_positives + false_positives + false_negatives
    f1 = np.where(total > 0, 2 * true_positives / np.maximum(total, 1), -1.0)
    columns = (
        column.tolist()
        for column in (image_ap(matches, num_images), true_positives, false_positives, false_negatives, f1)
    )
    return tuple(ImageScore(*row) for row in zip(image_ids, *columns, strict=True))


def worst_images(images: Sequence[ImageScore], number: int = 20) -> tuple[int, ...]:
    """Return the ids of the images with the lowest F1, ties by lower AP; perfect images are left out."""
    # rounding leaves the AP of a perfect image a little below 1
    bad = [image for image in images if image.f1 >= 0 and (image.f1 < 1 or -1 < image.ap < 1 - 1e-9)]
    bad.sort(key=lambda image: (image.f1, image.ap, -image.false_positives - image.false_negatives))
    return tuple(image.image_id for image in bad[:number])


def image_ap(matches: Matches, num_images: int) -> NDArray[np.float64]:
    """Return COCO's AP of each image alone: [I], the mean over the categories of its objects; -1 without objects."""
    objects = matches.objects
    is_counted = ~objects.is_ignored[:, 0]
    cells, num_objects = np.unique(
        objects.category_idx[is_counted] * num_images + objects.image_idx[is_counted], return_counts=True
    )
    starts, stops = (np.searchsorted(matches.ranked.cell, cells, side=side) for side in ("left", "right"))
    totals, counts = np.zeros(num_images), np.zeros(num_images)
    for cell, number, start, stop in zip(*(a.tolist() for a in (cells, num_objects, starts, stops)), strict=True):
        counted = ~matches.is_ignored[0, :, start:stop]
        true_positives = matches.is_matched[0, :, start:stop] & counted
        rows = [
            interpolated_precision(true_positives[t], counted[t], number)
            for t in range(len(IOU_THRESHOLDS))
            if true_positives[t].any()
        ]
        totals[cell % num_images] += sum(row.mean() for row in rows) / len(IOU_THRESHOLDS)
        counts[cell % num_images] += 1
    ap: NDArray[np.float64] = np.where(counts > 0, totals / np.maximum(counts, 1), -1.0)
    return ap


def confuse(matches: Matches, overlaps: Pairs, names: Sequence[str], threshold: float) -> Confusion:
    """Return the confusion matrix. overlaps: pairs of each image across categories"""
    objects, number = matches.objects, len(names)
    is_used = (matches.score >= threshold) & ~matches.is_ignored[0, 0]
    is_match = (overlaps.iou >= IOU_THRESHOLDS[0]) & is_used[overlaps.detection_idx]
    detection_idx, object_idx, iou = (
        column[is_match] for column in (overlaps.detection_idx, overlaps.object_idx, overlaps.iou)
    )
    is_crowd = objects.is_crowd[object_idx]
    is_in_crowd = np.zeros(len(is_used), dtype=bool)
    is_in_crowd[detection_idx[is_crowd]] = True
    detection_idx, object_idx, iou = detection_idx[~is_crowd], object_idx[~is_crowd], iou[~is_crowd]
    order = np.lexsort((-iou, detection_idx, -matches.score[detection_idx]))
    is_unmatched, is_unmatched_object = is_used.copy(), ~objects.is_ignored[:, 0]
    counts = np.zeros((number + 1, number + 1), dtype=np.int64)
    for detected, annotated in zip(detection_idx[order].tolist(), object_idx[order].tolist(), strict=True):
        if is_unmatched[detected] and is_unmatched_object[annotated]:
            is_unmatched[detected] = is_unmatched_object[annotated] = False
            counts[objects.category_idx[annotated], matches.category_idx[detected]] += 1
    counts[number, :number] = np.bincount(matches.category_idx[is_unmatched & ~is_in_crowd], minlength=number)
    counts[:number, number] = np.bincount(objects.category_idx[is_unmatched_object], minlength=number)
    return Confusion(tuple(names), tuple(tuple(row) for row in counts.tolist()))
