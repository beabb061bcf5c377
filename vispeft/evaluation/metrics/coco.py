"""COCO metrics for masks and boxes: the exact values of pycocotools, in a fraction of its time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.ground_truth import GroundTruth, read_ground_truth
from vispeft.coco.masks import Masks, measured_masks
from vispeft.coco.result_columns import ResultColumns, indices_in, read_columns, to_columns
from vispeft.coco.result_masks import result_masks
from vispeft.evaluation.metrics.accumulate import METRIC_NAMES, coco_summary, stats_at
from vispeft.evaluation.metrics.detections import MAX_DETECTIONS, Detections, Objects, Ranked, rank_detections
from vispeft.evaluation.metrics.matching import Matches, match_pairs
from vispeft.evaluation.metrics.overlaps import overlapping_pairs
from vispeft.io.garbage import paused_collection


@dataclass(frozen=True)
class CocoMetrics:
    """The twelve COCO metrics for masks and for boxes, in 0..1, -1 where undefined.

    segm, bbox: name of `METRIC_NAMES` to value; then those of `stats_at`, where COCO's limit of 100 detections is low
    per_category: category name to `category_metric`
    warnings: anomalies of the annotations, one sentence each
    """

    segm: Mapping[str, float]
    bbox: Mapping[str, float]
    per_category: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    category_metric: str = "mask AP"

    @property
    def kinds(self) -> dict[str, Mapping[str, float]]:
        """Return the metrics of masks and of boxes by the name of the pass."""
        return {"segm": self.segm, "bbox": self.bbox}

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return `segm`, `bbox` and `per_category`, as in `summary.json`."""
        return {"segm": dict(self.segm), "bbox": dict(self.bbox), "per_category": dict(self.per_category)}


@dataclass(frozen=True)
class Scored:
    """Checked results with the ground truth that they are scored against.

    image_ids, category_ids: ascending; `image_idx` and `category_idx` of objects and detections are indices into these
    names: category names by index
    columns: the D results
    image_idx, category_idx: [D] int64
    masks: masks of the results; None if the results are boxes only
    """

    ground_truth: GroundTruth
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    columns: ResultColumns
    image_idx: NDArray[np.int64]
    category_idx: NDArray[np.int64]
    masks: Masks | None

    @property
    def names(self) -> tuple[str, ...]:
        """Category names by index."""
        names = self.ground_truth.category_names
        return tuple(names[key] for key in self.category_ids)

    def objects(self, kind: str) -> Objects:
        """Return the ground-truth objects of the mask pass ("segm"), which needs masks, or of the box pass ("bbox")."""
        annotations, rles = self.ground_truth.annotations, self.ground_truth.rles
        masks_or_boxes: Masks | NDArray[np.float64]
        if kind == "segm":
            annotations = [entry for entry, rle in zip(annotations, rles, strict=True) if rle is not None]
            shapes = [rle for rle in rles if rle is not None]
            sizes = np.array([rle["size"] for rle in shapes], dtype=np.int64).reshape(-1, 2)
            masks_or_boxes = measured_masks(sizes, [rle["counts"] for rle in shapes])
        else:
            masks_or_boxes = np.array([entry["bbox"] for entry in annotations], dtype=np.float64).reshape(-1, 4)
        is_crowd = np.array([entry["iscrowd"] for entry in annotations], dtype=bool)
        area = np.array([entry["area"] for entry in annotations], dtype=np.float64)
        images = {key: index for index, key in enumerate(self.image_ids)}
        categories = {key: index for index, key in enumerate(self.category_ids)}
        return Objects(
            np.array([images[entry["image_id"]] for entry in annotations], dtype=np.int64),
            np.array([categories[entry["category_id"]] for entry in annotations], dtype=np.int64),
            area,
            is_crowd,
            masks_or_boxes,
        )

    def detections(self, kind: str) -> Detections:
        """Return the detections of the mask pass or of the box pass, with the areas that pycocotools uses."""
        columns = self.columns
        boxes = np.zeros((0, 4)) if columns.boxes is None else columns.boxes
        with np.errstate(over="ignore"):  # an infinite area is outside of every size range
            area = boxes[:, 2] * boxes[:, 3]
        masks_or_boxes: Masks | NDArray[np.float64] = boxes
        if kind == "segm" or (len(columns) and columns.boxes is None):
            if self.masks is None:
                raise ValueError("Results without masks have no mask pass.")
            area, masks_or_boxes = self.masks.measures.area, self.masks
            if kind == "bbox":
                rles = self.masks.rles(np.arange(len(columns)))
                masks_or_boxes = np.array(mask_utils.toBbox(rles), dtype=np.float64).reshape(-1, 4)
        return Detections(self.image_idx, self.category_idx, area, columns.score, masks_or_boxes)

    def rank(self, limit: int = MAX_DETECTIONS[-1]) -> Ranked:
        """Return the best detections of each class in each image. limit: number of them"""
        return rank_detections(self.image_idx, self.category_idx, self.columns.score, len(self.image_ids), limit=limit)

    @paused_collection()
    def match(self, kind: str, ranked: Ranked | None = None) -> Matches:
        """Match detections to ground-truth objects, by masks ("segm") or by boxes ("bbox").

        ranked: the detections that are scored, of `rank`; by default 100 of each class in each image
        """
        objects, detections = self.objects(kind), self.detections(kind)
        ranked = ranked or self.rank()
        pairs = overlapping_pairs(objects, detections, ranked)
        return match_pairs(objects, detections, ranked, pairs)

    def metrics(self, kind: str, ranked: Ranked, limit: int) -> tuple[dict[str, float], list[float]]:
        """Return the metrics of a pass and the AP of each category. ranked: of `rank(limit)`, with 100 or more"""
        matches, num_categories = self.match(kind, ranked), len(self.category_ids)
        stats, category_values = coco_summary(matches, num_categories)
        more = stats_at(matches, num_categories, limit) if limit > MAX_DETECTIONS[-1] else {}
        return {**stats, **more}, category_values

    def limit_for(self, max_detections: int | None) -> int:
        """Return the detections of a class in an image that are scored: `max_detections` in crowded sets, else 100.

        A set is crowded if an image has more than 100 objects of one class: COCO's metrics cannot reach 1 there.
        """
        places = ((a["image_id"], a["category_id"]) for a in self.ground_truth.annotations if not a["iscrowd"])
        is_crowded = max(Counter(places).values(), default=0) > MAX_DETECTIONS[-1]
        return max(MAX_DETECTIONS[-1], max_detections or 0) if is_crowded else MAX_DETECTIONS[-1]


@paused_collection()
def evaluate_coco(
    annotations: Path | str | dict[str, Any] | GroundTruth,
    results: Path | str | list[dict[str, Any]],
    *,
    max_detections: int | None = None,
) -> CocoMetrics:
    """Return the COCO metrics of results on an annotation file as it is. The arguments are not changed.

    The size of a detected mask is its mask area: pycocotools would take it from a result's `bbox`, so the mask pass
    omits `bbox`. Results that are boxes only have no mask metrics (-1).

    annotations: a file, its content, or the result of `read_ground_truth`, which saves time if it is used repeatedly
    max_detections: detections that were kept of each image. Where it and an image's objects of one class are more than
        COCO's 100, `AP@max_detections` and `AR@max_detections` follow the twelve metrics, which stay COCO's
    """
    scored = read_scored(annotations, results)
    limit = scored.limit_for(max_detections)
    ranked = scored.rank(limit)
    warnings = list(scored.ground_truth.warnings)
    num_categories = len(scored.category_ids)
    if not len(scored.columns):
        warnings.append("The results are an empty list: nothing was detected, so that no metric is above 0.")
    if all(entry["iscrowd"] for entry in scored.ground_truth.annotations):
        warnings.append(_no_objects_message(scored.ground_truth))
    if scored.masks is None:
        warnings.append("The results are boxes only, so that the mask metrics are undefined (-1).")
        segm, category_values = dict.fromkeys(METRIC_NAMES, -1.0), [-1.0] * num_categories
    else:
        segm, category_values = scored.metrics("segm", ranked, limit)
    bbox, _ = scored.metrics("bbox", ranked, limit)
    per_category = dict(zip(scored.names, category_values, strict=True))
    return CocoMetrics(segm, bbox, per_category, tuple(warnings))


def evaluate_boxes(
    annotations: Path | str | dict[str, Any],
    results: Path | str | list[dict[str, Any]],
    *,
    max_detections: int | None = None,
) -> CocoMetrics:
    """Return the COCO metrics of boxes alone: those of masks are undefined (-1), those by category are box AP.

    The arguments are those of `evaluate_coco`.
    """
    scored = read_scored(annotations, results)
    limit = scored.limit_for(max_detections)
    bbox, category_values = scored.metrics("bbox", scored.rank(limit), limit)
    per_category = dict(zip(scored.names, category_values, strict=True))
    return CocoMetrics(dict.fromkeys(METRIC_NAMES, -1.0), bbox, per_category, category_metric="box AP")


def _no_objects_message(ground_truth: GroundTruth) -> str:
    crowds = (
        " Every annotation has `iscrowd` 1; set it to 0 where a mask is one object." if ground_truth.annotations else ""
    )
    return f"The annotations contain no object to detect, so that all metrics are undefined (-1).{crowds}"


@paused_collection()
def read_scored(
    annotations: Path | str | dict[str, Any] | GroundTruth, results: Path | str | list[dict[str, Any]]
) -> Scored:
    """Read results and annotations and check them against each other. The arguments are not changed."""
    if isinstance(annotations, GroundTruth):
        ground_truth = annotations
    else:
        ground_truth = read_ground_truth(Path(annotations) if isinstance(annotations, str) else annotations)
    source = "the results" if isinstance(results, list) else str(results)
    columns = to_columns(results, source) if isinstance(results, list) else read_columns(Path(results))
    sizes = ground_truth.image_sizes
    ids = tuple(sorted(sizes)), tuple(sorted(ground_truth.category_names))
    image_idx, category_idx = indices_in(columns, source, *ids)
    masks: Masks | None = None
    if columns.masks is not None:
        masks = result_masks(columns, source, np.array([sizes[key] for key in ids[0]], dtype=np.int64)[image_idx])
    elif not len(columns):
        masks = measured_masks(np.zeros((0, 2), dtype=np.int64), [])
    return Scored(ground_truth, *ids, columns, image_idx, category_idx, masks)
