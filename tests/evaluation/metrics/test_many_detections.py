"""Metrics with more than COCO's 100 detections, compared with pycocotools called directly."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vispeft.evaluation import evaluate_coco

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def encoded(polygon: list[float]) -> dict[str, Any]:
    (rle,) = mask_utils.frPyObjects([polygon], 300, 300)
    return {"size": [300, 300], "counts": rle["counts"].decode()}


def crowded_case(num_objects: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes on a grid in one image of two, with detections near them and false ones, scores shuffled."""
    generator = np.random.default_rng(0)
    annotations, results = [], []
    for number in range(num_objects):
        x, y = 12 * (number % 20), 12 * (number // 20)
        polygon = [float(v) for v in (x, y, x + 9, y, x + 9, y + 9, x, y + 9)]
        common = {"image_id": 1 if number < num_objects - 3 else 2, "category_id": 1 + int(number % 11 == 0)}
        annotations.append(
            {"id": number + 1, **common, "iscrowd": 0, "bbox": [x, y, 9, 9], "area": 81, "segmentation": [polygon]}
        )
        for shift in (0, 1, 40)[: generator.integers(1, 4)]:
            moved = [value + shift * (index % 2 == 0) for index, value in enumerate(polygon)]
            results.append(
                {
                    **common,
                    "segmentation": encoded(moved),
                    "bbox": [x + shift, y, 9, 9],
                    "score": float(generator.random()),
                }
            )
    images = [{"id": key, "file_name": f"{key}.png", "width": 300, "height": 300} for key in (1, 2)]
    return {
        "images": images,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": annotations,
    }, results


def pycocotools_stats(annotations: dict[str, Any], results: list[dict[str, Any]], kind: str, limits: list[int]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        plain = [{k: v for k, v in r.items() if k != ("bbox" if kind == "segm" else "segmentation")} for r in results]
        evaluation = COCOeval(truth, truth.loadRes(plain), kind)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


@pytest.mark.parametrize("limit", [150, 400])
def test_evaluate_coco__adds_metrics_at_the_larger_limit(limit: int) -> None:
    annotations, results = crowded_case(200)
    metrics = evaluate_coco(annotations, results, max_detections=limit)
    for kind, found in (("segm", metrics.segm), ("bbox", metrics.bbox)):
        standard = pycocotools_stats(annotations, results, kind, [1, 10, 100])
        with contextlib.redirect_stdout(io.StringIO()):
            standard.summarize()
        assert [found[name] for name in NAMES] == standard.stats.tolist()
        larger = pycocotools_stats(annotations, results, kind, [1, 10, limit])
        for name, values in (
            (f"AP@{limit}", larger.eval["precision"][..., 0, -1]),
            (f"AR@{limit}", larger.eval["recall"][..., 0, -1]),
        ):
            assert found[name] == values[values > -1].mean()
        assert list(found) == [*NAMES, f"AP@{limit}", f"AR@{limit}"]
        assert found[f"AR@{limit}"] > found["AR100"]
    assert metrics.per_category == evaluate_coco(annotations, results).per_category


def test_evaluate_coco__adds_nothing_where_100_detections_are_enough() -> None:
    annotations, results = crowded_case(90)
    assert evaluate_coco(annotations, results, max_detections=300) == evaluate_coco(annotations, results)
    crowded, found = crowded_case(200)
    assert evaluate_coco(crowded, found, max_detections=100) == evaluate_coco(crowded, found)
