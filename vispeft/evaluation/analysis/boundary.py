"""Boundary AP: COCO's AP with IoU replaced by the lesser of mask IoU and boundary IoU.

Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021. The boundary of a mask is
its part within a distance of 2 % of the image's diagonal from its outline. Only pairs that overlap enough as masks can
match, so that only their boundaries are computed, each within its own box.
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
from vispeft.evaluation.metrics.matching import (
    IOU_THRESHOLDS,
    Pairs,
    match_pairs,
    overlapping_pairs,
    rank_detections,
    take_shapes,
)

DILATION_RATIO = 0.02
# masks decoded together
_CHUNK = 1024


def boundary_stats(scored: Scored) -> dict[str, float]:
    """Return COCO's twelve metrics with boundary IoU. Results must have masks."""
    truths, detections = scored.truths("segm"), scored.detections("segm")
    ranked = rank_detections(detections, len(scored.image_ids))
    pairs = overlapping_pairs(truths, detections, ranked, len(scored.image_ids))
    is_tested = ~truths.is_crowd[pairs.truth]  # what lies in a crowd needs no boundary in common with it
    rows, found_idx = np.unique(ranked.row[pairs.detection[is_tested]], return_inverse=True)
    truth_rows, truth_idx = np.unique(pairs.truth[is_tested], return_inverse=True)
    found = list(boundaries(take_shapes(detections.shapes, rows)))
    sought = list(boundaries(take_shapes(truths.shapes, truth_rows)))
    iou = pairs.iou.copy()
    iou[is_tested] = np.minimum(iou[is_tested], _pair_ious(found, sought, found_idx, truth_idx))
    is_enough = iou >= IOU_THRESHOLDS[0]
    kept = Pairs(pairs.detection[is_enough], pairs.truth[is_enough], iou[is_enough])
    return coco_stats(accumulate(match_pairs(truths, detections, ranked, kept), len(scored.category_ids)))


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

    region: [h, w] 0 or 1, a rectangle that contains the whole mask; height, width: of the image
    """
    reach = max(1, round(DILATION_RATIO * math.hypot(height, width)))
    framed = cv2.copyMakeBorder(region, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(framed, np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8))[1:-1, 1:-1]
    boundary: NDArray[np.bool_] = (region > 0) & (inner == 0)
    return boundary


def _pair_ious(
    found: list[dict[str, Any]],
    sought: list[dict[str, Any]],
    found_idx: NDArray[np.int64],
    truth_idx: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the IoU of each pair."""
    ious = np.zeros(len(found_idx))
    order = np.argsort(found_idx, kind="stable")
    cuts = np.flatnonzero(np.diff(found_idx[order])) + 1
    for places in np.split(order, cuts) if len(order) else []:
        others = [sought[index] for index in truth_idx[places].tolist()]
        ious[places] = mask_utils.iou([found[found_idx[places[0]]]], others, [0] * len(others))[0]
    return ious
