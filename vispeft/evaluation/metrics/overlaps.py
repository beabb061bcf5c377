"""Pairs of detections and ground-truth objects that overlap.

Letters as in `detections`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.masks import Masks
from vispeft.evaluation.metrics.detections import IOU_THRESHOLDS, Detections, Objects, Ranked

# number of pairs whose areas are compared together
_NUM_TOGETHER = 2**18


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


def overlapping_pairs(
    objects: Objects,
    detections: Detections,
    ranked: Ranked,
    *,
    least_iou: float = IOU_THRESHOLDS[0],
    is_within_category: bool = True,
) -> Pairs:
    """Return all pairs within each cell, or within each image, with an IoU of at least `least_iou`, unordered."""
    # by image first: results of one image lie together in memory
    place, object_place = detections.image_idx[ranked.row], objects.image_idx
    if is_within_category:
        category_idx = detections.category_idx[ranked.row]
        num_categories = 1 + max(category_idx.max(initial=0), objects.category_idx.max(initial=0))
        place = place * num_categories + category_idx
        object_place = object_place * num_categories + objects.category_idx
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
    bounds = (bound.tolist() for bound in (starts, stops, object_starts, object_stops))
    ious = [
        mask_utils.iou(detected[start:stop], annotated[first:last], is_crowd[first:last]).ravel()
        for start, stop, first, last in zip(*bounds, strict=True)
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
