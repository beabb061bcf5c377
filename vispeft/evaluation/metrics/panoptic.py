"""Panoptic quality (Kirillov et al., CVPR 2019; https://arxiv.org/abs/1801.00868), by the rules of panopticapi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.label_maps import ImageSegments, read_segments

# above it, no two segments can match the same one
_MATCH_IOU = 0.5
_IGNORED_PART = 0.5


@dataclass(frozen=True)
class PanopticMetrics:
    """Panoptic quality, in 0..1, -1 where undefined.

    panoptic: `PQ`, `SQ` (mean IoU of matched segments) and `RQ` (F1 of segments), each the mean over the classes with
        segments in annotations or results; with `_things` and `_stuff` over these classes alone
    per_category: category name to PQ
    """

    panoptic: Mapping[str, float]
    per_category: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, Mapping[str, float]]:
        """Return the metrics by kind."""
        return {"panoptic": self.panoptic}

    @property
    def category_metric(self) -> str:
        """Return the name of the metric of a category."""
        return "PQ"

    def to_dict(self) -> dict[str, Any]:
        """Return `panoptic`, `pq` and `per_category`, as in `summary.json`."""
        return {"panoptic": dict(self.panoptic), "pq": self.panoptic["PQ"], "per_category": dict(self.per_category)}


@dataclass
class _Counts:
    """Sums over images for each category, [K] each."""

    iou: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]


def evaluate_panoptic(
    annotations: Path | str | dict[str, Any], results: Path | str | list[dict[str, Any]]
) -> PanopticMetrics:
    """Return the panoptic quality of results: segments that do not overlap, as masks of annotations and results.

    annotations: with `isthing` in its categories, and `iscrowd` for regions of several objects
    """
    read = read_segments(annotations, results)
    places = {identifier: idx for idx, identifier in enumerate(read.category_ids)}
    num = len(places)
    counts = _Counts(np.zeros(num), *(np.zeros(num, np.int64) for _ in range(3)))
    for image in read.images():
        _add_image(counts, image, places)
    num_segments = counts.true_positives + 0.5 * counts.false_positives + 0.5 * counts.false_negatives
    is_present = num_segments > 0
    recognition = counts.true_positives / np.where(is_present, num_segments, 1)
    segmentation = counts.iou / np.maximum(counts.true_positives, 1)
    quality = counts.iou / np.where(is_present, num_segments, 1)
    is_thing = np.array(read.is_thing, bool)
    values = {}
    for suffix, chosen in (("", is_present), ("_things", is_present & is_thing), ("_stuff", is_present & ~is_thing)):
        for name, numbers in (("PQ", quality), ("SQ", segmentation), ("RQ", recognition)):
            values[f"{name}{suffix}"] = float(numbers[chosen].mean()) if chosen.any() else -1.0
    per_category = np.where(is_present, quality, -1.0).tolist()
    return PanopticMetrics(values, dict(zip(read.names, per_category, strict=True)), read.warnings)


def _add_image(counts: _Counts, image: ImageSegments, places: Mapping[int, int]) -> None:
    """Match the segments of an image and count them.

    Two segments match if their class is the same and their IoU, without the unlabelled pixels of the result, is above
    0.5. A result that lies for more than half in unlabelled pixels and crowd regions of its class does not count.
    """
    kinds, result_kinds = _places(image.truths, places), _places(image.results, places)
    is_crowd = np.array([bool(entry["iscrowd"]) for entry in image.truths], bool)
    shared = image.overlaps[1:, 1:]
    unlabelled = image.overlaps[0, 1:]
    areas, result_areas = image.overlaps.sum(1)[1:], image.overlaps.sum(0)[1:]
    union = areas[:, None] + result_areas - shared - unlabelled
    iou = shared / np.maximum(union, 1)
    is_match = (iou > _MATCH_IOU) & (kinds[:, None] == result_kinds) & ~is_crowd[:, None]
    rows, columns = np.nonzero(is_match)
    np.add.at(counts.iou, kinds[rows], iou[rows, columns])
    np.add.at(counts.true_positives, kinds[rows], 1)
    np.add.at(counts.false_negatives, kinds[~is_match.any(1) & ~is_crowd & (areas > 0)], 1)
    ignored = unlabelled.copy()
    # of several crowd regions of a class, panopticapi takes the last
    crowd_of = {int(kind): row for row, kind in enumerate(kinds.tolist()) if is_crowd[row]}
    for column, kind in enumerate(result_kinds.tolist()):
        if kind in crowd_of:
            ignored[column] += shared[crowd_of[kind], column]
    is_counted = ~is_match.any(0) & (result_areas > 0) & (ignored <= _IGNORED_PART * result_areas)
    np.add.at(counts.false_positives, result_kinds[is_counted], 1)


def _places(entries: Sequence[Mapping[str, Any]], places: Mapping[int, int]) -> NDArray[np.int64]:
    return np.array([places[entry["category_id"]] for entry in entries], np.int64)
