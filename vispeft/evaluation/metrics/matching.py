"""COCO's greedy matching of detections to ground-truth objects, over all images, sizes and thresholds at once.

pycocotools takes detections by falling score and matches each to the unmatched object of its image and category with
the highest IoU, if that reaches the threshold. Only pairs that reach the lowest threshold matter, and they are few. The
n-th such detections of all images and categories are matched in one step here, at all size ranges and thresholds, which
are the bits of one integer.

Letters: `D` detections, `G` ground-truth objects, `P` overlapping pairs, `A` size ranges, `T` IoU thresholds, `K`
categories. A cell is one category in one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
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
# bit fields: bit `a * T + t` stands for size range a and threshold t
_FIELD = 2 ** len(IOU_THRESHOLDS) - 1
_ALL = np.uint64(2 ** (len(IOU_THRESHOLDS) * len(AREA_RANGES)) - 1)
_AREAS: NDArray[np.uint64] = np.array(
    [_FIELD << (area * len(IOU_THRESHOLDS)) for area in range(len(AREA_RANGES))], dtype=np.uint64
)
# bits of the thresholds that are reached, by their number
_REACHED: NDArray[np.uint64] = np.array(
    [2**number - 1 for number in range(len(IOU_THRESHOLDS) + 1)], dtype=np.uint64
) * (_AREAS // np.uint64(_FIELD)).sum(dtype=np.uint64)
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
class Links:
    """Objects that detections match. bits: [L] uint64, size ranges and thresholds of each match"""

    detection_idx: NDArray[np.int64]
    object_idx: NDArray[np.int64]
    bits: NDArray[np.uint64]


@dataclass(frozen=True)
class Matches:
    """Matches of every scored detection, in the order of `ranked`.

    image_idx, category_idx, rank: [D] int64
    score: [D] float64
    matched: [D] uint64, the size ranges and thresholds at which a detection is matched
    ignored: [D] uint64, those at which it counts as no true and no false positive
    links: the matched objects
    objects: the ground-truth objects
    """

    ranked: Ranked
    image_idx: NDArray[np.int64]
    category_idx: NDArray[np.int64]
    score: NDArray[np.float64]
    matched: NDArray[np.uint64]
    ignored: NDArray[np.uint64]
    links: Links
    objects: Objects

    @cached_property
    def is_matched(self) -> NDArray[np.bool_]:
        """`matched` as [A, T, D] bool."""
        return _unpacked(self.matched)

    @cached_property
    def is_ignored(self) -> NDArray[np.bool_]:
        """`ignored` as [A, T, D] bool."""
        return _unpacked(self.ignored)

    @cached_property
    def object_idx(self) -> NDArray[np.int64]:
        """The matched object if objects of all sizes count, or -1: [T, D] int64."""
        found = np.full((len(IOU_THRESHOLDS), len(self.score)), -1)
        for threshold, row in enumerate(found):
            is_linked = bits_at(self.links.bits, 0, threshold)
            row[self.links.detection_idx[is_linked]] = self.links.object_idx[is_linked]
        return found


def bits_at(bits: NDArray[np.uint64], area: int, threshold: int) -> NDArray[np.bool_]:
    """Return the bits of one size range and threshold: [N] bool. bits: [N], such as `Matches.matched`"""
    return (bits & np.uint64(1 << (area * len(IOU_THRESHOLDS) + threshold))) != 0


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
    outside = _fields(_is_outside(detections.area[ranked.row]))
    matched, ignored = np.zeros(len(ranked.row), dtype=np.uint64), outside.copy()
    taken = _Taken(pairs, _fields(objects.is_ignored), objects.is_crowd)
    for detection_idx, begin, count in _rounds(ranked, taken):
        free, uncounted = taken.match(detection_idx, begin, count)
        matched[detection_idx] = ~free & _ALL
        ignored[detection_idx] = (free & outside[detection_idx]) | uncounted
    places = detections.image_idx[ranked.row], detections.category_idx[ranked.row], detections.score[ranked.row]
    return Matches(ranked, *places, matched, ignored, taken.links(), objects)


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


class _Taken:
    """The objects that are matched already, as bit fields, and the pairs of every detection by rising IoU.

    pairs: P pairs; ties in IoU are sorted by object
    ignored: [G] uint64, size ranges in which an object is not counted
    """

    def __init__(self, pairs: Pairs, ignored: NDArray[np.uint64], is_crowd: NDArray[np.bool_]) -> None:
        order = np.lexsort((pairs.object_idx, pairs.iou, pairs.detection_idx))
        self.detection_idx = pairs.detection_idx[order]
        self._object_idx = pairs.object_idx[order]
        self._reached = _REACHED[np.searchsorted(IOU_THRESHOLDS, pairs.iou[order], side="right")]
        self._ignored = ignored
        self._lasting = np.where(is_crowd, np.uint64(0), _ALL)  # a crowd can be matched any number of times
        self._taken = np.zeros(len(ignored), dtype=np.uint64)
        self._links: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]] = []

    def match(
        self, detection_idx: NDArray[np.int64], begin: NDArray[np.int64], count: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Match n detections of different cells: each to its best free object that counts, or else that is ignored.

        begin, count: [n] int64, each detection's range of pairs, which is not empty

        Returns two bit fields: without a match, and matched to an ignored object.
        """
        free, uncounted = np.full(len(begin), _ALL), np.zeros(len(begin), dtype=np.uint64)
        candidates = []
        for place in range(1, int(count.max()) + 1):
            rows = np.flatnonzero(count >= place)
            pair = begin[rows] + count[rows] - place
            object_idx = self._object_idx[pair]
            candidates.append((rows, object_idx, self._reached[pair] & ~self._taken[object_idx]))
        for rows, object_idx, is_open in candidates:
            self._take(detection_idx, rows, object_idx, free[rows] & is_open & ~self._ignored[object_idx], free)
        for rows, object_idx, is_open in candidates:
            bits = free[rows] & is_open & self._ignored[object_idx]
            self._take(detection_idx, rows, object_idx, bits, free)
            uncounted[rows] |= bits
        return free, uncounted

    def links(self) -> Links:
        """Return all matches so far."""
        if not self._links:
            return Links(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64))
        return Links(*(np.concatenate(column) for column in zip(*self._links, strict=True)))

    def _take(
        self,
        detection_idx: NDArray[np.int64],
        rows: NDArray[np.int64],
        object_idx: NDArray[np.int64],
        bits: NDArray[np.uint64],
        free: NDArray[np.uint64],
    ) -> None:
        free[rows] &= ~bits
        self._taken[object_idx] |= bits & self._lasting[object_idx]
        self._links.append((detection_idx[rows], object_idx, bits))


def _rounds(ranked: Ranked, taken: _Taken) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the detections of each round, one per cell, with begin and count of their pairs."""
    is_first = np.ones(len(taken.detection_idx), dtype=bool)
    is_first[1:] = taken.detection_idx[1:] != taken.detection_idx[:-1]
    begin = np.flatnonzero(is_first)
    count = np.diff(begin, append=len(taken.detection_idx))
    detection_idx = taken.detection_idx[begin]
    turn = _position_in_group(ranked.cell[detection_idx])
    by_turn = np.argsort(turn, kind="stable")
    cuts = np.flatnonzero(np.diff(turn[by_turn])) + 1
    for rows in np.split(by_turn, cuts):
        if len(rows):
            yield detection_idx[rows], begin[rows], count[rows]


def _fields(is_set: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return a mask of size ranges as bit fields: [N] uint64. is_set: [N, A]"""
    fields: NDArray[np.uint64] = np.where(is_set, _AREAS, np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return fields


def _unpacked(bits: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return bit fields as [A, T, N] bool."""
    unpacked = np.empty((len(AREA_RANGES), len(IOU_THRESHOLDS), len(bits)), dtype=bool)
    for area, threshold in np.ndindex(unpacked.shape[:2]):
        unpacked[area, threshold] = bits_at(bits, area, threshold)
    return unpacked


def _is_outside(area: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask of the areas outside of each size range: [N, A]."""
    return (area[:, None] < AREA_RANGES[:, 0]) | (area[:, None] > AREA_RANGES[:, 1])


def _position_in_group(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each element in its group of equal keys."""
    is_first = np.ones(len(sorted_keys), dtype=bool)
    is_first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    starts = np.flatnonzero(is_first)
    return np.arange(len(sorted_keys)) - np.repeat(starts, np.diff(np.append(starts, len(sorted_keys))))
