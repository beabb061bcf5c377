"""Boundary AP compared with a direct implementation: whole masks, stepwise erosion, evaluation by pycocotools."""

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vispeft.evaluation.analysis.boundary import boundaries, boundary_of, boundary_stats
from vispeft.evaluation.metrics.coco import read_scored

Function = Callable[..., Any]


def _boundary(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    steps = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    framed = np.pad(mask, 1)
    for _ in range(steps):
        framed = cv2.erode(framed, np.ones((3, 3), dtype=np.uint8))
    return np.asfortranarray(mask - framed[1:-1, 1:-1])


class _BoundaryEval(COCOeval):
    """pycocotools with the minimum of mask IoU and boundary IoU; for crowds the mask IoU alone."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        ious = super().computeIoU(imgId, catId)
        if not len(ious):
            return ious
        found = sorted(self._dts[imgId, catId], key=lambda item: -item["score"])[: self.params.maxDets[-1]]
        shapes = [
            [mask_utils.encode(_boundary(mask_utils.decode(item["segmentation"]))) for item in items]
            for items in (found, self._gts[imgId, catId])
        ]
        crowd = np.array([item["iscrowd"] for item in self._gts[imgId, catId]])
        outlines = mask_utils.iou(*shapes, crowd.tolist())
        return np.where(crowd > 0, ious, np.minimum(ious, outlines))


@pytest.mark.parametrize("seed", [1, 3, 8])
def test_boundary_stats__are_the_definition(seed: int, adversarial_case: Function) -> None:
    annotations, results = adversarial_case(seed, 4)
    results = [result for number, result in enumerate(results) if number % 4 == 0]
    found = boundary_stats(read_scored(annotations, results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        masks = [{key: result[key] for key in result if key != "bbox"} for result in copy.deepcopy(results)]
        evaluator = _BoundaryEval(truth, truth.loadRes(masks), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert list(found.values()) == evaluator.stats.tolist()
    assert 0 < found["AP"] < 1


def test_boundaries__within_boxes_are_those_of_whole_masks() -> None:
    generator = np.random.default_rng(0)
    masks = [cv2.blur(generator.random((90, 70)), (9, 9)) > 0.5 for _ in range(6)]
    masks[0][:, :30] = False
    masks[1][:] = True
    masks[2][:] = False
    rles = [mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    rles = [{"size": [90, 70], "counts": rle["counts"].decode()} for rle in rles]
    for mask, rle in zip(masks, boundaries(rles), strict=True):
        np.testing.assert_array_equal(mask_utils.decode(rle), _boundary(mask.astype(np.uint8)))


def test_boundary_of__is_at_least_one_pixel_wide() -> None:
    assert boundary_of(np.ones((5, 5), dtype=np.uint8), 8, 8).sum() == 16
