"""Ground-truth objects and detections as arrays, and the detections that COCO scores.

Letters: `D` detections, `G` ground-truth objects, `P` overlapping pairs, `A` size ranges, `T` IoU thresholds, `K`
categories. A cell is one category in one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.masks import Masks

# computed as in pycocotools, for the same floating-point values
IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
AREA_NAMES = ("all", "small", "medium", "large")
AREA_RANGES: NDArray[np.float64] = np.array(
    [[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]], dtype=np.float64
)
MAX_DETECTIONS = (1, 10, 100)


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
        return self.is_crowd[:, None] | is_outside(self.area)


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
    by_score: [D] int64, order by category and falling score
    """

    row: NDArray[np.int64]
    cell: NDArray[np.int64]
    rank: NDArray[np.int64]
    by_score: NDArray[np.int64]


def rank_detections(
    image_idx: NDArray[np.int64],
    category_idx: NDArray[np.int64],
    score: NDArray[np.float64],
    num_images: int,
    *,
    limit: int = MAX_DETECTIONS[-1],
) -> Ranked:
    """Return the detections that are scored, in pycocotools' order: equal scores in the order of the results.

    image_idx, category_idx, score: [D], of all detections; limit: detections scored in each cell
    """
    image, category = _narrow(image_idx), _narrow(category_idx)
    order = np.argsort(image, kind="stable")
    order = order[np.argsort(-score[order], kind="stable")]  # by falling score, equal scores by image
    row = order[np.argsort(image[order], kind="stable")]
    row = row[np.argsort(category[row], kind="stable")]
    cell = category_idx[row] * num_images + image_idx[row]
    rank = position_in_group(cell)
    is_scored = rank < limit
    row, cell, rank = row[is_scored], cell[is_scored], rank[is_scored]
    place = np.full(len(score), -1)
    place[row] = np.arange(len(row))
    by_score = place[order[np.argsort(category[order], kind="stable")]]
    return Ranked(row, cell, rank, by_score[by_score >= 0])


def _narrow(indices: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.uint16]:
    """Return indices in 16 bits if they fit: their stable sort is one of digits, which takes a tenth of the time."""
    return indices.astype(np.uint16) if indices.max(initial=0) < 2**16 else indices


def is_outside(area: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask of the areas outside of each size range: [N, A]."""
    return (area[:, None] < AREA_RANGES[:, 0]) | (area[:, None] > AREA_RANGES[:, 1])


def position_in_group(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each element in its group of equal keys."""
    is_first = np.ones(len(sorted_keys), dtype=bool)
    is_first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    starts = np.flatnonzero(is_first)
    return np.arange(len(sorted_keys)) - np.repeat(starts, np.diff(np.append(starts, len(sorted_keys))))
