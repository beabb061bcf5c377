"""Error analysis of COCO results: metrics by category, size and image, kinds of error, calibration, boundary AP."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vispeft.coco.ground_truth import GroundTruth
from vispeft.errors import DataError
from vispeft.evaluation.analysis.boundary import boundary_stats
from vispeft.evaluation.analysis.calibration import Calibration, best_threshold, calibrate
from vispeft.evaluation.analysis.errors import BACKGROUND, Errors, decompose_errors
from vispeft.evaluation.analysis.images import Confusion, ImageScore, confuse, score_images, worst_images
from vispeft.evaluation.metrics.accumulate import (
    RECALLS,
    Curves,
    accumulate,
    coco_stats,
    count_objects,
    mean_of_defined,
)
from vispeft.evaluation.metrics.coco import Scored, read_scored
from vispeft.evaluation.metrics.detections import AREA_NAMES, IOU_THRESHOLDS
from vispeft.evaluation.metrics.matching import Matches, match_pairs
from vispeft.evaluation.metrics.overlaps import Pairs, overlapping_pairs
from vispeft.evaluation.statistics.bootstrap import records_of
from vispeft.evaluation.statistics.compare import estimate_ap
from vispeft.evaluation.statistics.significance import Estimate


@dataclass(frozen=True)
class CategoryMetrics:
    """Metrics of one category, in 0..1, -1 where undefined.

    num_objects: number of ground-truth objects: of all sizes, small, medium, large
    """

    name: str
    num_objects: tuple[int, ...]
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar100: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision at the 101 recalls 0, 0.01, ..., 1, for objects of all sizes and 100 detections per image and category.

    mean: by IoU threshold ("0.50", ...), the mean over categories
    by_category: precision at IoU 0.5, by category name
    scores: the score at which each recall is reached at IoU 0.5, by category name
    """

    recalls: tuple[float, ...]
    mean: dict[str, tuple[float, ...]]
    by_category: dict[str, tuple[float, ...]]
    scores: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class ErrorAnalysis:
    """Error analysis of one results file.

    kind: "segm", or "bbox" if the results or the annotations are boxes only
    metrics: COCO's twelve metrics
    boundary: the same metrics with boundary IoU; None for boxes
    interval: confidence interval of AP over resampled images
    threshold: the score threshold with the best F1 at IoU 0.5, used for `images` and `confusion`
    worst: image ids, the worst first
    warnings: anomalies of the annotations, one sentence each
    """

    kind: str
    metrics: dict[str, float]
    interval: Estimate
    boundary: dict[str, float] | None
    categories: tuple[CategoryMetrics, ...]
    precision_recall: PrecisionRecall
    errors: Errors
    calibration: Calibration | None
    threshold: float
    confusion: Confusion
    images: tuple[ImageScore, ...]
    worst: tuple[int, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the analysis as values for JSON."""
        return asdict(self)


def analyse_results(
    annotations: Path | str | dict[str, Any] | GroundTruth,
    results: Path | str | list[dict[str, Any]],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> ErrorAnalysis:
    """Analyse results by their masks, or by their boxes if the results or the annotations have no masks.

    num_resamples, seed: resampling for the interval of AP
    """
    scored = read_scored(annotations, results)
    has_masks = scored.masks is not None and any(rle is not None for rle in scored.ground_truth.rles)
    kind = "segm" if has_masks else "bbox"
    matches, pairs, overlaps = _matched(scored, kind)
    num_images, num_categories = len(scored.image_ids), len(scored.category_ids)
    num_objects = count_objects(matches, num_categories)
    if not num_objects[:, 0].any():
        raise DataError("The annotations contain no object to detect, so that there are no errors to analyse.")
    curves = accumulate(matches, num_categories)
    threshold = best_threshold(matches, num_categories)
    images = score_images(matches, scored.image_ids, threshold)
    records = records_of(matches, num_images, num_categories)
    return ErrorAnalysis(
        kind=kind,
        metrics=coco_stats(curves),
        interval=estimate_ap([records], num_resamples=num_resamples, seed=seed),
        boundary=None if kind == "bbox" else boundary_stats(scored),
        categories=tuple(
            _category(curves, index, name, num_objects[index].tolist()) for index, name in enumerate(scored.names)
        ),
        precision_recall=_precision_recall(curves, scored.names),
        errors=decompose_errors(matches, overlaps, num_categories),
        calibration=calibrate(matches, pairs),
        threshold=threshold,
        confusion=confuse(matches, overlaps, scored.names, threshold),
        images=images,
        worst=worst_images(images),
        warnings=scored.ground_truth.warnings,
    )


def _matched(scored: Scored, kind: str) -> tuple[Matches, Pairs, Pairs]:
    """Return the matches, their pairs within categories from IoU 0.5, and all pairs of each image from IoU 0.1."""
    objects, detections = scored.objects(kind), scored.detections(kind)
    ranked = scored.rank()
    overlaps = overlapping_pairs(objects, detections, ranked, least_iou=BACKGROUND, is_within_category=False)
    category = detections.category_idx[ranked.row]
    is_same = category[overlaps.detection_idx] == objects.category_idx[overlaps.object_idx]
    is_same &= overlaps.iou >= IOU_THRESHOLDS[0]
    pairs = Pairs(overlaps.detection_idx[is_same], overlaps.object_idx[is_same], overlaps.iou[is_same])
    return match_pairs(objects, detections, ranked, pairs), pairs, overlaps


def _category(curves: Curves, index: int, name: str, num_objects: list[int]) -> CategoryMetrics:
    """Return the metrics of one category. num_objects: number of objects by size range"""
    precision = curves.precision[:, :, index, :, -1]  # [T, R, A]
    by_size = [mean_of_defined(precision[:, :, area]) for area in range(len(AREA_NAMES))]
    return CategoryMetrics(
        name=name,
        num_objects=tuple(num_objects),
        ap=by_size[0],
        ap50=mean_of_defined(precision[0, :, 0]),
        ap75=mean_of_defined(precision[5, :, 0]),
        ap_small=by_size[1],
        ap_medium=by_size[2],
        ap_large=by_size[3],
        ar100=mean_of_defined(curves.recall[:, index, 0, -1]),
    )


def _precision_recall(curves: Curves, names: tuple[str, ...]) -> PrecisionRecall:
    """Return the curves. names: category names by index"""
    precision, scores = curves.precision[:, :, :, 0, -1], curves.scores[:, :, :, 0, -1]  # [T, R, K]
    defined = np.flatnonzero(precision[0, 0] > -1)
    mean = precision[:, :, defined].mean(axis=2)
    return PrecisionRecall(
        recalls=tuple(RECALLS.round(2).tolist()),
        mean={f"{iou:.2f}": tuple(row) for iou, row in zip(IOU_THRESHOLDS, mean.tolist(), strict=True)},
        by_category={names[index]: tuple(precision[0, :, index].tolist()) for index in defined},
        scores={names[index]: tuple(scores[0, :, index].tolist()) for index in defined},
    )
