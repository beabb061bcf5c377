"""COCO's greedy matching of detections to ground-truth objects, over all images, sizes and thresholds at once.

pycocotools takes detections by falling score and matches each to the unmatched object of its image and category with
the highest IoU, if that reaches the threshold. Only pairs that reach the lowest threshold matter, and they are few. The
n-th such detections of all images and categories are matched in one step here, at all size ranges and thresholds, which
are the bits of one integer.

Letters as in `detections`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.detections import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    Detections,
    Objects,
    Ranked,
    is_outside,
    position_in_group,
)
from vispeft.evaluation.metrics.overlaps import Pairs

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
    mask = np.uint64(1 << (area * len(IOU_THRESHOLDS) + threshold))
    is_set: NDArray[np.bool_] = (bits & mask) != 0
    return is_set


def match_pairs(objects: Objects, detections: Detections, ranked: Ranked, pairs: Pairs) -> Matches:
    """Match detections to objects, given all pairs that reach the lowest IoU threshold."""
    outside = _fields(is_outside(detections.area[ranked.row]))
    matched, ignored = np.zeros(len(ranked.row), dtype=np.uint64), outside.copy()
    taken = _Taken(pairs, _fields(objects.is_ignored), objects.is_crowd)
    for detection_idx, begin, count in _rounds(ranked, taken):
        free, uncounted = taken.match(detection_idx, begin, count)
        matched[detection_idx] = ~free & _ALL
        ignored[detection_idx] = (free & outside[detection_idx]) | uncounted
    places = detections.image_idx[ranked.row], detections.category_idx[ranked.row], detections.score[ranked.row]
    return Matches(ranked, *places, matched, ignored, taken.links(), objects)


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
    turn = position_in_group(ranked.cell[detection_idx])
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
