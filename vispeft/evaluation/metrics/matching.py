"""COCO's greedy matching of detections to ground-truth objects, over all images, sizes and thresholds at once.

pycocotools takes detections by falling score and matches each to the unmatched object of its image and category with
the highest IoU, if that reaches the threshold. Only pairs that reach the lowest threshold matter, and they are few. The
n-th such detections of all images and categories are matched in one step here.

Letters: `D` detections, `G` ground-truth objects, `P` overlapping pairs, `A` size ranges, `T` IoU thresholds, `K`
categories. A cell is one category in one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.masks import Masks

# computed as in pycocotools, for the same floating-point values
IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
AREA_NAMES = ("all", "small", "medium", "large")
AREA_RANGES: NDArray[np.float64] = np.array(
    [[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]], dtype=np.float64
)
MAX_DETECTIONS = (1, 10, 100)
# number of pairs whose areas are compared together
_NUM_TOGETHER = 2**18


@dataclass(frozen=True)
class Objects:
    """Ground-truth objects in the order of the file.

    image_idx, category_idx: [G] int64, counted by ascending id
    area: [G] float64, pixels
    is_crowd: [G] bool
    masks_or_boxes: masks, or [G, 4] boxes x, y, width, height
    """

    image_idx: NDArray[np.int64]
    category_idx: NDArray[np.int64]
    area: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    masks_or_boxes: Masks | NDArray[np.float64]

    @property
    def is_ignored(self) -> NDArray[np.bool_]:
        """Mask of the objects that are not counted in each size range: [G, A]."""
        return self.is_crowd[:, None] | _is_outside(self.area)


@dataclass(frozen=True)
class Detections:
    """Detected objects in the order of the results, with fields as in `Objects`. score: [D] float64"""

    image_idx: NDArray[np.int64]
    category_idx: NDArray[np.int64]
    area: NDArray[np.float64]
    score: NDArray[np.float64]
    masks_or_boxes: Masks | NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """The detections that are scored: the best of every cell, 100 by default, by category, image and falling score.

    row: [D] int64, index into `Detections`
    cell: [D] int64, ascending
    rank: [D] int64, within the cell, from 0
    """

    row: NDArray[np.int64]
    cell: NDArray[np.int64]
    rank: NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Detections and objects of one cell that overlap.

    detection_idx: [P] int64, index into `Ranked`
    object_idx: [P] int64, index into `Objects`
    iou: [P] float64
    """

    detection_idx: NDArray[np.int64]
    object_idx: NDArray[np.int64]
    iou: NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """Matches of every scored detection, in the order of `ranked`.

    image_idx, category_idx, rank: [D] int64
    score: [D] float64
    is_matched: [A, T, D] bool
    is_ignored: [A, T, D] bool, counted as no true and no false positive
    object_idx: [T, D] int64, the matched object if objects of all sizes count, or -1
    objects: the ground-truth objects
    """

    ranked: Ranked
    image_idx: NDArray[np.int64]
    category_idx: NDArray[np.int64]
    score: NDArray[np.float64]
    is_matched: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    object_idx: NDArray[np.int64]
    objects: Objects


def match_detections(
    objects: Objects, detections: Detections, num_images: int, *, limit: int = MAX_DETECTIONS[-1]
) -> Matches:
    """Match detections to objects as COCO does, by masks or by boxes. limit: detections scored in each cell"""
    ranked = rank_detections(detections, num_images, limit=limit)
    return match_pairs(objects, detections, ranked, overlapping_pairs(objects, detections, ranked, num_images))


def rank_detections(detections: Detections, num_images: int, *, limit: int = MAX_DETECTIONS[-1]) -> Ranked:
    """Return the detections that are scored, in pycocotools' order: equal scores in the order of the results."""
    cell = detections.category_idx * num_images + detections.image_idx
    row = np.lexsort((-detections.score, cell))
    cell = cell[row]
    rank = _position_in_group(cell)
    is_scored = rank < limit
    return Ranked(row[is_scored], cell[is_scored], rank[is_scored])


def overlapping_pairs(
    objects: Objects,
    detections: Detections,
    ranked: Ranked,
    num_images: int,
    *,
    least_iou: float = IOU_THRESHOLDS[0],
    is_within_category: bool = True,
) -> Pairs:
    """Return all pairs within each cell, or within each image, with an IoU of at least `least_iou`, unordered."""
    if is_within_category:
        place, object_place = ranked.cell, objects.category_idx * num_images + objects.image_idx
    else:
        place, object_place = detections.image_idx[ranked.row], objects.image_idx
    order, object_order = np.argsort(place, kind="stable"), np.argsort(object_place, kind="stable")
    if isinstance(detections.masks_or_boxes, Masks):
        groups = place[order], object_place[object_order]
        is_near, is_object_near = _near(objects, detections, ranked.row[order], object_order, groups, least_iou)
        order, object_order = order[is_near], object_order[is_object_near]
    place, object_place = place[order], object_place[object_order]
    shared = np.intersect1d(place, object_place)
    starts, stops = (np.searchsorted(place, shared, side=side) for side in ("left", "right"))
    object_starts, object_stops = (np.searchsorted(object_place, shared, side=side) for side in ("left", "right"))
    detected, annotated = (
        take_rows(detections.masks_or_boxes, ranked.row[order]),
        take_rows(objects.masks_or_boxes, object_order),
    )
    is_crowd = objects.is_crowd[object_order].astype(np.uint8)
    ious = [
        mask_utils.iou(
            detected[start:stop], annotated[object_start:object_stop], is_crowd[object_start:object_stop]
        ).ravel()
        for start, stop, object_start, object_stop in zip(
            *(bounds.tolist() for bounds in (starts, stops, object_starts, object_stops)), strict=True
        )
    ]
    iou = np.concatenate([np.zeros(0), *ious])
    kept = np.flatnonzero(iou >= least_iou)
    widths = object_stops - object_starts
    ends = np.cumsum((stops - starts) * widths)
    group = np.searchsorted(ends, kept, side="right")
    row, column = np.divmod(kept - (ends - (stops - starts) * widths)[group], widths[group])
    return Pairs(order[starts[group] + row], object_order[object_starts[group] + column], iou[kept])


def _near(
    objects: Objects,
    detections: Detections,
    rows: NDArray[np.int64],
    object_rows: NDArray[np.int64],
    groups: tuple[NDArray[np.int64], NDArray[np.int64]],
    least_iou: float,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return masks of the detections and objects that may reach an IoU with an object or a detection of their group.

    Without decoding it is known that IoU is at most the ratio of the areas, and 0 if one mask ends before the other.

    rows, object_rows: indices of detections and objects, by group
    groups: group of each of them, ascending
    """
    if not isinstance(detections.masks_or_boxes, Masks) or not isinstance(objects.masks_or_boxes, Masks):
        raise ValueError("Masks are compared with masks alone.")
    one, other = detections.masks_or_boxes.measures, objects.masks_or_boxes.measures
    begins, stops = (np.searchsorted(groups[1], groups[0], side=side) for side in ("left", "right"))
    is_near, is_object_near = np.zeros(len(rows), dtype=bool), np.zeros(len(object_rows), dtype=bool)
    for part in _parts_of(stops - begins, _NUM_TOGETHER):
        widths = (stops - begins)[part]
        position = np.repeat(np.arange(part.start, part.stop), widths)
        first = np.cumsum(widths) - widths
        object_position = np.arange(len(position)) - np.repeat(first - begins[part], widths)
        row, object_row = rows[position], object_rows[object_position]
        area, object_area = one.area[row], other.area[object_row]
        # a quotient, as IoU is, so that both are rounded alike
        is_enough = np.minimum(area, object_area) / np.maximum(np.maximum(area, object_area), 1) >= least_iou
        is_enough |= objects.is_crowd[object_row]
        is_enough &= (one.begin[row] < other.end[object_row]) & (other.begin[object_row] < one.end[row])
        is_near[position[is_enough]] = is_object_near[object_position[is_enough]] = True
    return is_near, is_object_near


def match_pairs(objects: Objects, detections: Detections, ranked: Ranked, pairs: Pairs) -> Matches:
    """Match detections to objects, given all pairs that reach the lowest IoU threshold."""
    num_areas, num_thresholds = len(AREA_RANGES), len(IOU_THRESHOLDS)
    is_matched = np.zeros((num_areas, num_thresholds, len(ranked.row)), dtype=bool)
    is_outside = _is_outside(detections.area[ranked.row]).T
    is_ignored = np.repeat(is_outside[:, None], num_thresholds, axis=1)
    object_idx = np.full((num_thresholds, len(ranked.row)), -1)
    is_taken = np.zeros((len(objects.area), num_areas, num_thresholds), dtype=bool)
    is_object_ignored = objects.is_ignored
    for detection_idx, ranges in _rounds(ranked, pairs):
        counted, uncounted = _choices(pairs, ranges, is_taken, is_object_ignored, objects.is_crowd)  # [n, A, T]
        chosen = np.where(counted >= 0, counted, uncounted)
        row, area, threshold = np.nonzero(chosen >= 0)
        is_taken[chosen[row, area, threshold], area, threshold] = True
        is_matched[:, :, detection_idx] = np.moveaxis(chosen >= 0, 0, 2)
        ignored = np.where(chosen >= 0, counted < 0, is_outside.T[detection_idx][:, :, None])
        is_ignored[:, :, detection_idx] = np.moveaxis(ignored, 0, 2)
        object_idx[:, detection_idx] = chosen[:, 0].T
    taken = detections.image_idx[ranked.row], detections.category_idx[ranked.row], detections.score[ranked.row]
    return Matches(ranked, *taken, is_matched, is_ignored, object_idx, objects)


def take_rows(masks_or_boxes: Masks | NDArray[np.float64], rows: NDArray[np.int64]) -> Any:
    """Return some of the masks or boxes, in the form that pycocotools accepts."""
    return masks_or_boxes.rles(rows) if isinstance(masks_or_boxes, Masks) else masks_or_boxes[rows]


def _parts_of(widths: NDArray[np.int64], most: int) -> list[slice]:
    """Return slices of consecutive elements whose widths add up to some `most` each."""
    if not len(widths):
        return []
    ends = np.cumsum(widths)
    cuts = np.searchsorted(ends, np.arange(most, ends[-1], most), side="left") + 1
    bounds = np.unique(np.concatenate([[0], cuts, [len(widths)]]))
    return [slice(start, stop) for start, stop in pairwise(bounds.tolist())]


@dataclass(frozen=True)
class _PairRanges:
    """Pairs of n detections, as ranges of the sorted pairs.

    order: [P] int64, indices that sort the pairs
    begin, count: [n] int64, first position and number of each detection's pairs
    """

    order: NDArray[np.int64]
    begin: NDArray[np.int64]
    count: NDArray[np.int64]


def _rounds(ranked: Ranked, pairs: Pairs) -> list[tuple[NDArray[np.int64], _PairRanges]]:
    """Return the detections of each round, one per cell, and their pairs by rising IoU, ties by object index."""
    order = np.lexsort((pairs.object_idx, pairs.iou, pairs.detection_idx))
    detection_idx, begin, count = np.unique(pairs.detection_idx[order], return_index=True, return_counts=True)
    turn = _position_in_group(ranked.cell[detection_idx])
    by_turn = np.argsort(turn, kind="stable")
    cuts = np.flatnonzero(np.diff(turn[by_turn])) + 1
    return [
        (detection_idx[rows], _PairRanges(order, begin[rows], count[rows]))
        for rows in np.split(by_turn, cuts)
        if len(rows)
    ]


def _choices(
    pairs: Pairs,
    ranges: _PairRanges,
    is_taken: NDArray[np.bool_],
    is_object_ignored: NDArray[np.bool_],
    is_crowd: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the best unmatched object that counts, and the best ignored one, or -1: [n, A, T] each.

    A crowd can be matched any number of times.
    """
    counted = np.full((len(ranges.begin), *is_taken.shape[1:]), -1)
    uncounted = counted.copy()
    for place in range(int(ranges.count.max())):
        pair = ranges.order[ranges.begin + np.minimum(place, ranges.count - 1)]
        object_idx = pairs.object_idx[pair]
        is_enough = (pairs.iou[pair, None] >= IOU_THRESHOLDS) & (ranges.count > place)[:, None]
        is_open = is_enough[:, None] & (~is_taken[object_idx] | is_crowd[object_idx, None, None])
        ignored = is_object_ignored[object_idx][:, :, None]
        counted = np.where(is_open & ~ignored, object_idx[:, None, None], counted)
        uncounted = np.where(is_open & ignored, object_idx[:, None, None], uncounted)
    return counted, uncounted


def _is_outside(area: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask of the areas outside of each size range: [N, A]."""
    return (area[:, None] < AREA_RANGES[:, 0]) | (area[:, None] > AREA_RANGES[:, 1])


def _position_in_group(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each element in its group of equal keys."""
    is_first = np.ones(len(sorted_keys), dtype=bool)
    is_first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    starts = np.flatnonzero(is_first)
    return np.arange(len(sorted_keys)) - np.repeat(starts, np.diff(np.append(starts, len(sorted_keys))))
