"""Boundary AP: COCO's AP with IoU replaced by the minimum of mask IoU and boundary IoU.

Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021. The boundary of a mask is
its part within a distance of 2 % of the image's diagonal from its outline. Only pairs with a mask IoU above the lowest
threshold can match. Boundaries are therefore computed for these alone, each within its bounding box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.rle import encode_region
from vispeft.coco.rle_batch import decode_region, decode_rles
from vispeft.evaluation.metrics.accumulate import accumulate, coco_stats
from vispeft.evaluation.metrics.coco import Scored
from vispeft.evaluation.metrics.detections import IOU_THRESHOLDS
from vispeft.evaluation.metrics.matching import match_pairs
from vispeft.evaluation.metrics.overlaps import Pairs, overlapping_pairs, take_rows

DILATION_RATIO = 0.02
# number of masks that are decoded together
_CHUNK = 1024


def boundary_stats(scored: Scored) -> dict[str, float]:
    """Return COCO's twelve metrics with boundary IoU. Results must have masks."""
    objects, detections = scored.objects("segm"), scored.detections("segm")
    ranked = scored.rank()
    pairs = overlapping_pairs(objects, detections, ranked)
    is_tested = ~objects.is_crowd[pairs.object_idx]  # a crowd is matched by mask IoU alone
    detection_rows, detection_places = np.unique(ranked.row[pairs.detection_idx[is_tested]], return_inverse=True)
    object_rows, object_places = np.unique(pairs.object_idx[is_tested], return_inverse=True)
    detected = list(boundaries(take_rows(detections.masks_or_boxes, detection_rows)))
    annotated = list(boundaries(take_rows(objects.masks_or_boxes, object_rows)))
    iou = pairs.iou.copy()
    iou[is_tested] = np.minimum(iou[is_tested], _pair_ious(detected, annotated, detection_places, object_places))
    is_enough = iou >= IOU_THRESHOLDS[0]
    kept = Pairs(pairs.detection_idx[is_enough], pairs.object_idx[is_enough], iou[is_enough])
    return coco_stats(accumulate(match_pairs(objects, detections, ranked, kept), len(scored.category_ids)))


def boundaries(rles: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the boundary of each mask, as compressed RLE."""
    for start in range(0, len(rles), _CHUNK):
        part = rles[start : start + _CHUNK]
        runs = decode_rles([rle["counts"] for rle in part])
        for index, rle in enumerate(part):
            height, width = rle["size"]
            left, top, box_width, box_height = (int(side) for side in mask_utils.toBbox(rle))
            if not box_width * box_height:
                yield dict(rle)
                continue
            region = decode_region(runs.of(index), (left, top, box_width, box_height), height)
            yield encode_region(boundary_of(region, height, width), top, left, height, width)


def boundary_of(region: NDArray[np.uint8], height: int, width: int) -> NDArray[np.bool_]:
    """Return the part of a mask near its outline, with the image's edge as part of the outline: [h, w].

    region: [h, w] 0 or 1, a rectangle that contains the whole mask
    height, width: size of the image
    """
    reach = max(1, round(DILATION_RATIO * math.hypot(height, width)))
    framed = cv2.copyMakeBorder(region, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(framed, np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8))[1:-1, 1:-1]
    boundary: NDArray[np.bool_] = (region > 0) & (inner == 0)
    return boundary


def _pair_ious(
    detected: list[dict[str, Any]],
    annotated: list[dict[str, Any]],
    detection_places: NDArray[np.int64],
    object_places: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the IoU of each pair."""
    ious = np.zeros(len(detection_places))
    order = np.argsort(detection_places, kind="stable")
    cuts = np.flatnonzero(np.diff(detection_places[order])) + 1
    for places in np.split(order, cuts) if len(order) else []:
        others = [annotated[index] for index in object_places[places].tolist()]
        ious[places] = mask_utils.iou([detected[detection_places[places[0]]]], others, [0] * len(others))[0]
    return ious
