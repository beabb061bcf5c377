"""COCO's greedy matching of detections to ground-truth objects, over all images, sizes and thresholds at once.

pycocotools goes through detections, best first, and matches each to the free object of its image and category with the
highest IoU, if that reaches the threshold. Only pairs that reach the lowest threshold matter, and they are few. Here
the n-th such detections of all images and categories are matched in one step.

Letters: `D` detections, `G` annotated objects, `P` overlapping pairs, `A` size ranges, `T` IoU thresholds, `K`
categories. A cell is one category in one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

# as pycocotools makes them
IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
AREA_NAMES = ("all", "small", "medium", "large")
AREA_RANGES: NDArray[np.float64] = np.array(
    [[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]], dtype=np.float64
)
MAX_DETECTIONS = (1, 10, 100)

Shapes = Sequence[Mapping[str, Any]] | NDArray[np.float64]


@dataclass(frozen=True)
class Truths:
    """Annotated objects in the order of the file.

    image_idx, category_idx: [G] int64, counted by ascending id
    area: [G] float64, pixels
    is_crowd: [G] bool
    shapes: compressed RLEs, or [G, 4] boxes x, y, width, height
    """

    image_idx: NDArray[np.int64]
    category_idx: NDArray[np.int64]
    area: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    shapes: Shapes

    @property
    def is_ignored(self) -> NDArray[np.bool_]:
        """Mask of the objects that are ignored in each size range, neither true positive nor false negative: [G, A]."""
        return self.is_crowd[:, None] | _is_outside(self.area)


@dataclass(frozen=True)
class Detections:
    """Detected objects in the order of the results; fields as in `Truths`. score: [D] float64."""

    image_idx: NDArray[np.int64]
    category_idx: NDArray[np.int64]
    area: NDArray[np.float64]
    score: NDArray[np.float64]
    shapes: Shapes


@dataclass(frozen=True)
class Ranked:
    """The detections that are scored: the 100 best of every cell, by category, then image, then falling score.

    row: [D] int64, into `Detections`
    cell: [D] int64, ascending
    rank: [D] int64, within the cell, from 0
    """

    row: NDArray[np.int64]
    cell: NDArray[np.int64]
    rank: NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Detections and objects of one cell that overlap.

    detection: [P] int64, into `Ranked`
    truth: [P] int64, into `Truths`
    iou: [P] float64
    """

    detection: NDArray[np.int64]
    truth: NDArray[np.int64]
    iou: NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """Matches of every scored detection, in the order of `ranked`.

    image_idx, category_idx, rank: [D] int64
    score: [D] float64
    is_matched: [A, T, D] bool
    is_ignored: [A, T, D] bool, neither true nor false positive
    truth: [T, D] int64, the matched object when objects of all sizes count, or -1
    truths: the objects
    """

    ranked: Ranked
    image_idx: NDArray[np.int64]
    category_idx: NDArray[np.int64]
    score: NDArray[np.float64]
    is_matched: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    truth: NDArray[np.int64]
    truths: Truths


def match_detections(truths: Truths, detections: Detections, num_images: int) -> Matches:
    """Match detections to objects as COCO does, by masks or by boxes."""
    ranked = rank_detections(detections, num_images)
    return match_pairs(truths, detections, ranked, overlapping_pairs(truths, detections, ranked, num_images))


def rank_detections(detections: Detections, num_images: int) -> Ranked:
    """Return the detections that are scored, in pycocotools' order: equal scores in the order of the results."""
    cell = detections.category_idx * num_images + detections.image_idx
    row = np.lexsort((-detections.score, cell))
    cell = cell[row]
    rank = _position_in_group(cell)
    is_scored = rank < MAX_DETECTIONS[-1]
    return Ranked(row[is_scored], cell[is_scored], rank[is_scored])


def overlapping_pairs(
    truths: Truths,
    detections: Detections,
    ranked: Ranked,
    num_images: int,
    *,
    least_iou: float = IOU_THRESHOLDS[0],
    is_within_category: bool = True,
) -> Pairs:
    """Return all pairs of a cell, or of an image, with at least an IoU of `least_iou`, in no particular order."""
    if is_within_category:
        place, truth_place = ranked.cell, truths.category_idx * num_images + truths.image_idx
    else:
        place, truth_place = detections.image_idx[ranked.row], truths.image_idx
    order, truth_order = np.argsort(place, kind="stable"), np.argsort(truth_place, kind="stable")
    place, truth_place = place[order], truth_place[truth_order]
    shared = np.intersect1d(place, truth_place)
    starts, stops = (np.searchsorted(place, shared, side=side) for side in ("left", "right"))
    truth_starts, truth_stops = (np.searchsorted(truth_place, shared, side=side) for side in ("left", "right"))
    found, sought = take_shapes(detections.shapes, ranked.row[order]), take_shapes(truths.shapes, truth_order)
    is_crowd = truths.is_crowd[truth_order].astype(np.uint8)
    ious = [
        mask_utils.iou(found[start:stop], sought[truth_start:truth_stop], is_crowd[truth_start:truth_stop]).ravel()
        for start, stop, truth_start, truth_stop in zip(
            *(bounds.tolist() for bounds in (starts, stops, truth_starts, truth_stops)), strict=True
        )
    ]
    iou = np.concatenate([np.zeros(0), *ious])
    kept = np.flatnonzero(iou >= least_iou)
    widths = truth_stops - truth_starts
    ends = np.cumsum((stops - starts) * widths)
    group = np.searchsorted(ends, kept, side="right")
    row, column = np.divmod(kept - (ends - (stops - starts) * widths)[group], widths[group])
    return Pairs(order[starts[group] + row], truth_order[truth_starts[group] + column], iou[kept])


def match_pairs(truths: Truths, detections: Detections, ranked: Ranked, pairs: Pairs) -> Matches:
    """Match detections to objects, given all pairs that reach the lowest IoU threshold."""
    num_areas, num_thresholds = len(AREA_RANGES), len(IOU_THRESHOLDS)
    is_matched = np.zeros((num_areas, num_thresholds, len(ranked.row)), dtype=bool)
    is_outside = _is_outside(detections.area[ranked.row]).T
    is_ignored = np.repeat(is_outside[:, None], num_thresholds, axis=1)
    truth = np.full((num_thresholds, len(ranked.row)), -1)
    is_taken = np.zeros((len(truths.area), num_areas, num_thresholds), dtype=bool)
    truth_ignored = truths.is_ignored
    for chooser, candidates in _rounds(ranked, pairs):
        real, other = _choices(pairs, candidates, is_taken, truth_ignored, truths.is_crowd)  # [n, A, T]
        chosen = np.where(real >= 0, real, other)
        row, area, threshold = np.nonzero(chosen >= 0)
        is_taken[chosen[row, area, threshold], area, threshold] = True
        is_matched[:, :, chooser] = np.moveaxis(chosen >= 0, 0, 2)
        ignored = np.where(chosen >= 0, real < 0, is_outside.T[chooser][:, :, None])
        is_ignored[:, :, chooser] = np.moveaxis(ignored, 0, 2)
        truth[:, chooser] = chosen[:, 0].T
    taken = detections.image_idx[ranked.row], detections.category_idx[ranked.row], detections.score[ranked.row]
    return Matches(ranked, *taken, is_matched, is_ignored, truth, truths)


def take_shapes(shapes: Shapes, rows: NDArray[np.int64]) -> Any:
    """Return the shapes of some rows, as pycocotools takes them."""
    return shapes[rows] if isinstance(shapes, np.ndarray) else [shapes[row] for row in rows.tolist()]


@dataclass(frozen=True)
class _Candidates:
    """Candidates of n detections in the sorted pairs. begin, count: [n] each, first position and number"""

    order: NDArray[np.int64]
    begin: NDArray[np.int64]
    count: NDArray[np.int64]


def _rounds(ranked: Ranked, pairs: Pairs) -> list[tuple[NDArray[np.int64], _Candidates]]:
    """Return the detections of each round, one per cell, and their candidates by rising IoU, ties by object index."""
    order = np.lexsort((pairs.truth, pairs.iou, pairs.detection))
    chooser, begin, count = np.unique(pairs.detection[order], return_index=True, return_counts=True)
    turn = _position_in_group(ranked.cell[chooser])
    by_turn = np.argsort(turn, kind="stable")
    cuts = np.flatnonzero(np.diff(turn[by_turn])) + 1
    return [
        (chooser[rows], _Candidates(order, begin[rows], count[rows])) for rows in np.split(by_turn, cuts) if len(rows)
    ]


def _choices(
    pairs: Pairs,
    candidates: _Candidates,
    is_taken: NDArray[np.bool_],
    truth_ignored: NDArray[np.bool_],
    is_crowd: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the best free object that counts, and the best ignored one, or -1: [n, A, T] each.

    Crowds are always free.
    """
    real = np.full((len(candidates.begin), *is_taken.shape[1:]), -1)
    other = real.copy()
    for place in range(int(candidates.count.max())):
        pair = candidates.order[candidates.begin + np.minimum(place, candidates.count - 1)]
        truth = pairs.truth[pair]
        is_enough = (pairs.iou[pair, None] >= IOU_THRESHOLDS) & (candidates.count > place)[:, None]
        is_open = is_enough[:, None] & (~is_taken[truth] | is_crowd[truth, None, None])
        ignored = truth_ignored[truth][:, :, None]
        real = np.where(is_open & ~ignored, truth[:, None, None], real)
        other = np.where(is_open & ignored, truth[:, None, None], other)
    return real, other


def _is_outside(area: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell whether areas lie outside of each size range: [N, A]."""
    return (area[:, None] < AREA_RANGES[:, 0]) | (area[:, None] > AREA_RANGES[:, 1])


def _position_in_group(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each element in its group of equal keys."""
    is_first = np.ones(len(sorted_keys), dtype=bool)
    is_first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    starts = np.flatnonzero(is_first)
    return np.arange(len(sorted_keys)) - np.repeat(starts, np.diff(np.append(starts, len(sorted_keys))))
