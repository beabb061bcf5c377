"""AP of resampled sets of images, computed from image weights on one sorted list of detections.

An image that is drawn three times is scored as three images. Sorting and matching are those of the original set; only
the counts change, so that thousands of resamples take seconds.

Letters: `B` resamples, `I` images, `D` detections, `T` IoU thresholds, `K` categories.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from vispeft.evaluation.metrics.accumulate import RECALLS
from vispeft.evaluation.metrics.detections import IOU_THRESHOLDS
from vispeft.evaluation.metrics.matching import Matches, bits_at

# indices of the IoU thresholds that each metric averages over
METRICS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
# recalls that are slightly above their hundredth in the floating-point arithmetic of pycocotools
_IS_LATE = np.arange(101) / 100 < RECALLS
# number of resamples scored together, so that the arrays of one category fit into a core's cache
_NUM_TOGETHER = 128


@dataclass(frozen=True)
class Records:
    """Input of the AP of one results file: objects of all sizes, 100 detections per image and category.

    image_idx: [D] int64, image of each detection, sorted by category and then falling score
    category_begins: [K + 1] int64, offset of each category's first detection
    is_true_positive, is_ignored: [T, D] bool, true positives and ignored detections; the others are false positives
    num_objects: [K, I] int64, ground-truth objects
    """

    image_idx: NDArray[np.int64]
    category_begins: NDArray[np.int64]
    is_true_positive: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    num_objects: NDArray[np.int64]

    @property
    def num_images(self) -> int:
        """Number of images of the whole set, including those without objects and detections."""
        return int(self.num_objects.shape[1])


def records_of(matches: Matches, num_images: int, num_categories: int) -> Records:
    """Return the records of matched results."""
    order = matches.ranked.by_score
    thresholds = range(len(IOU_THRESHOLDS))
    matched, ignored = matches.matched[order], matches.ignored[order]
    is_ignored = np.stack([bits_at(ignored, 0, threshold) for threshold in thresholds])
    is_true_positive = np.stack([bits_at(matched & ~ignored, 0, threshold) for threshold in thresholds])
    begins = np.searchsorted(matches.category_idx, np.arange(num_categories + 1))
    objects = matches.objects
    is_counted = ~objects.is_ignored[:, 0]
    cells = objects.category_idx[is_counted] * num_images + objects.image_idx[is_counted]
    num_objects = np.bincount(cells, minlength=num_categories * num_images).reshape(num_categories, num_images)
    return Records(matches.image_idx[order], begins, is_true_positive, is_ignored, num_objects)


def resample_images(num_images: int, num_resamples: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw `num_images` images with replacement for each resample. Return the count of each image: [B, I]."""
    return generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_resamples)


def weighted_ap(records: Records, weights: NDArray[np.int64], metric: str = "AP") -> NDArray[np.float64]:
    """Return AP, AP50 or AP75 of each weighted set of images: [B], nan where it has no object. weights: [B, I]."""
    thresholds = range(len(IOU_THRESHOLDS))[METRICS[metric]]
    by_image = np.ascontiguousarray(weights.T, dtype=np.float64)  # [I, B]
    num_objects = records.num_objects.astype(np.float64) @ by_image  # [K, B], whole numbers
    totals = np.zeros(len(weights))

    def add_totals(start: int) -> None:
        part = slice(start, start + _NUM_TOGETHER)
        some = np.ascontiguousarray(by_image[:, part])
        for category in np.flatnonzero(num_objects[:, part].any(axis=1)).tolist():
            rows = slice(*records.category_begins[category : category + 2].tolist())
            totals[part] += _category_ap(records, rows, some, num_objects[category, part], thresholds)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy and scipy release the GIL
        list(pool.map(add_totals, range(0, len(weights), _NUM_TOGETHER)))
    num_defined = (num_objects > 0).sum(axis=0)
    values = np.full(len(totals), np.nan)
    np.divide(totals, num_defined, out=values, where=num_defined > 0)
    return values


def plain_ap(records: Records, metric: str = "AP") -> float:
    """Return AP, AP50 or AP75 of the unweighted set: pycocotools' value, up to rounding; nan without objects."""
    return float(weighted_ap(records, np.ones((1, records.num_images), dtype=np.int64), metric)[0])


def _category_ap(
    records: Records, rows: slice, weights: NDArray[np.float64], num_objects: NDArray[np.float64], thresholds: range
) -> NDArray[np.float64]:
    """Return the AP of one category in each weighted set, mean over IoU thresholds: [b]. weights: [I, b]."""
    is_true_positive, is_ignored = (
        records.is_true_positive[thresholds.start : thresholds.stop, rows],
        records.is_ignored[:, rows],
    )
    image_idx = records.image_idx[rows]
    needed = np.flatnonzero(is_true_positive.any(axis=0))
    if not len(needed):
        return np.zeros(weights.shape[1])
    num_before = _cumulative_weights(needed, image_idx, weights)  # [n, b]
    total = np.zeros(weights.shape[1])
    for index, threshold in enumerate(thresholds):
        true_positives = np.flatnonzero(is_true_positive[index])
        if not len(true_positives):
            continue
        num_counted = num_before[np.searchsorted(needed, true_positives)]
        ignored = np.flatnonzero(is_ignored[threshold, : true_positives[-1]])
        if len(ignored):
            num_ignored = np.cumsum(weights[image_idx[ignored]], axis=0)
            place = np.searchsorted(ignored, true_positives)
            num_counted[place > 0] -= num_ignored[place[place > 0] - 1]
        num_true_positives = np.cumsum(weights[image_idx[true_positives]], axis=0)
        total += _mean_precision(num_true_positives, num_counted, num_objects)
    return total / len(thresholds)


def _cumulative_weights(
    places: NDArray[np.int64], image_idx: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weighted number of detections up to and including each place: [n, b].

    places: [n] int64, ascending; weights: [I, b]
    """
    begins = np.concatenate([np.zeros(1, dtype=np.int64), places + 1])
    images = image_idx[: begins[-1]]
    between = csr_matrix((np.ones(len(images)), images, begins), shape=(len(places), len(weights)))
    sums: NDArray[np.float64] = between @ weights
    return np.cumsum(sums, axis=0, out=sums)


def _mean_precision(
    num_true_positives: NDArray[np.float64], num_counted: NDArray[np.float64], num_objects: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the 101-point mean of interpolated precision: [b].

    num_true_positives, num_counted: [n, b], true positives, and all counted detections, up to and including each true
        positive; overwritten
    num_objects: [b]
    """
    num_counted += np.spacing(1)
    best_after = np.maximum.accumulate((num_true_positives / num_counted)[::-1], axis=0)[::-1]
    hundredths = num_true_positives
    hundredths *= 100
    hundredths /= np.maximum(num_objects, 1)
    reached = np.floor(hundredths)
    is_exact = np.nonzero(reached == hundredths)
    is_late = _IS_LATE[reached[is_exact].astype(np.int64)]
    reached += 1  # from an index to the number of recalls reached
    reached[is_exact] -= is_late
    reached[1:] -= reached[:-1].copy()
    mean: NDArray[np.float64] = np.einsum("nb,nb->b", best_after, reached) / len(RECALLS)
    return mean
