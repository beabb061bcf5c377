"""COCO metrics for masks and boxes: pycocotools' own figures, to the last digit."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vispeft.evaluation.annotations import GroundTruth, read_ground_truth
from vispeft.evaluation.results import check_references, check_result_list, mask_results, read_results

# in the order of COCOeval.stats
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class CocoMetrics:
    """The twelve COCO numbers for masks and for boxes, in 0..1, -1 where undefined.

    segm, bbox: name of `METRIC_NAMES` to value
    per_category: category name to mask AP
    warnings: what is odd about the annotations, one sentence each
    """

    segm: Mapping[str, float]
    bbox: Mapping[str, float]
    per_category: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`segm`, `bbox` and `per_category`, as `summary.json` holds them."""
        return {"segm": dict(self.segm), "bbox": dict(self.bbox), "per_category": dict(self.per_category)}


def evaluate_coco(annotations: Path | str | dict[str, Any], results: Path | str | list[dict[str, Any]]) -> CocoMetrics:
    """COCO metrics of results on an annotation file as it stands; neither argument is changed.

    Sizes of detected masks are mask areas: pycocotools takes them from a result's `bbox` where there is one, so the
    mask pass goes without. Results that are boxes only have no mask figures (-1).
    """
    truth = read_ground_truth(Path(annotations) if isinstance(annotations, str) else annotations)
    source = "the results" if isinstance(results, list) else str(results)
    if isinstance(results, list):
        check_result_list(results, source)
    else:
        results = read_results(Path(results))
    sizes, names = truth.image_sizes, truth.category_names
    check_references(results, source, sizes, names.keys())
    warnings = list(truth.warnings)
    with contextlib.redirect_stdout(io.StringIO()):
        if results and "segmentation" not in results[0]:
            warnings.append("The results are boxes only, so that the mask figures are undefined (-1).")
            segm, category_values = dict.fromkeys(METRIC_NAMES, -1.0), [-1.0] * len(names)
        else:
            is_scored = [idx not in truth.maskless_idx for idx in range(len(truth.annotations))]
            evaluator = _evaluated(truth, is_scored, mask_results(results, source, sizes), "segm")
            segm, category_values = _numbers(evaluator), _category_precisions(evaluator)
        bbox = _numbers(_evaluated(truth, [True] * len(truth.annotations), [dict(item) for item in results], "bbox"))
    per_category = {names[key]: value for key, value in zip(sorted(names), category_values, strict=True)}
    return CocoMetrics(segm, bbox, per_category, tuple(warnings))


def _evaluated(truth: GroundTruth, is_scored: Iterable[bool], results: list[dict[str, Any]], iou_type: str) -> COCOeval:
    """pycocotools' evaluation, run. results: consumed (pycocotools writes into them)."""
    kept = [dict(annotation) for annotation, scored in zip(truth.annotations, is_scored, strict=True) if scored]
    ground_truth = _indexed({"images": truth.images, "categories": truth.categories, "annotations": kept})
    if results:
        detections = ground_truth.loadRes(results)
    else:  # loadRes cannot take an empty list
        detections = _indexed({"images": truth.images, "categories": truth.categories, "annotations": []})
    evaluator = COCOeval(ground_truth, detections, iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _numbers(evaluator: COCOeval) -> dict[str, float]:
    return {name: float(value) for name, value in zip(METRIC_NAMES, evaluator.stats, strict=True)}


def _category_precisions(evaluator: COCOeval) -> list[float]:
    """AP of each category in the order of ascending ids: all areas, 100 detections."""
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # [IoU thresholds, recalls, categories]
    values = [category[category > -1] for category in np.moveaxis(precision, 2, 0)]
    return [float(value.mean()) if len(value) else -1.0 for value in values]
