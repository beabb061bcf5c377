"""Box and area of an annotation: from the file where they are valid, else computed from its mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from vispeft.coco.problems import Findings, show
from vispeft.coco.segmentation import FARTHEST_COORDINATE, Polygons, Rle, Segmentation, encode_segmentation
from vispeft.coco.sets import ImageEntry
from vispeft.coco.values import as_box, as_number

NO_BOX = object()
"""Stand-in for an annotation that is left out because it has no valid box; it keeps the places of the others."""

SMALL_POLYGON = 16.0
"""Square pixels of polygon area below which a mask is drawn to see whether it covers any pixel."""


def box_and_area(
    item: Mapping[str, Any], name: str, segmentation: Segmentation, entry: ImageEntry, findings: Findings
) -> tuple[tuple[float, float, float, float], float] | None:
    """Return the box and area of an annotation, or None for a mask without a pixel, which is reported."""
    has_both = item.get("bbox") is not None and as_number(item.get("area")) is not None
    rle = None
    if not (has_both and _covers_pixels(segmentation, entry)):
        rle = encode_segmentation(segmentation, entry.height, entry.width)
        if coco_mask.area(rle) == 0:
            findings.warn("empty-mask", "its mask covers no pixel of the image; left out.", name)
            return None
    bbox, area = _valid_bbox(item, name, findings), _valid_area(item, name, findings)
    if bbox is not None and not overlaps_mask(bbox, segmentation):
        bbox = _report_misplaced_box(bbox, segmentation, name, findings)
    if bbox is not None and area is not None:
        return bbox, area
    rle = rle or encode_segmentation(segmentation, entry.height, entry.width)
    x, y, width, height = (float(v) for v in coco_mask.toBbox(rle))
    return bbox or (x, y, width, height), area or float(coco_mask.area(rle))


def _report_misplaced_box(
    bbox: tuple[float, float, float, float], segmentation: Segmentation, name: str, findings: Findings
) -> tuple[float, float, float, float] | None:
    """Report that the box lies off the mask and return the box; None where a file is repaired."""
    doubt = (
        "is it x1, y1, x2, y2, not x, y, width, height?"
        if isinstance(segmentation, Polygons)
        else "were its `counts` taken row by row, not column by column?"
    )
    outcome = "replaced by the mask's" if findings.is_repairing else f"the mask counts ({doubt})"
    findings.warn("bbox-off", f"`bbox` lies far off the mask; {outcome}.", f"{name} {show(list(bbox))}")
    return None if findings.is_repairing else bbox


def _valid_bbox(item: Mapping[str, Any], name: str, findings: Findings) -> tuple[float, float, float, float] | None:
    raw = item.get("bbox")
    if raw is None or raw == []:
        return None
    box = trained_box(raw)
    if box is not None:
        return box
    findings.warn(
        "bad-bbox", "`bbox` is no valid x, y, width, height; the box of the mask is used.", f"{name} {show(raw)}"
    )
    return None


def trained_box(raw: Any) -> tuple[float, float, float, float] | None:
    """Return a box of four finite numbers with sides above 0, or None for anything else."""
    box = as_box(raw)
    return box if box is not None and max(map(abs, box)) <= FARTHEST_COORDINATE and min(box[2:]) > 0 else None


def _valid_area(item: Mapping[str, Any], name: str, findings: Findings) -> float | None:
    raw = item.get("area")
    area = as_number(raw)
    if raw is not None and (area is None or area <= 0):
        findings.warn(
            "bad-area", "`area` must be a positive number; the area of the mask is used.", f"{name} ({show(raw)})"
        )
        return None
    return area


def overlaps_mask(bbox: tuple[float, float, float, float], segmentation: Segmentation) -> bool:
    """Return True where the IoU of a box and the box of the mask is at least 0.5."""
    low, high = np.array(bbox[:2]), np.array(bbox[:2]) + bbox[2:]
    mask_low, mask_high = segmentation.extent
    shared = np.clip(np.minimum(high, mask_high) - np.maximum(low, mask_low), 0, None).prod()
    union = (high - low).prod() + (mask_high - mask_low).prod() - shared
    return bool(2 * shared >= union)


def with_rectangle(item: Any, place: int, findings: Findings) -> Any:
    """Return an annotation with its box as its segmentation; `NO_BOX`, which is reported, without a valid box."""
    if not isinstance(item, Mapping):
        return item
    box = trained_box(item.get("bbox"))
    if box is None:
        sentence = "`bbox` must be x, y, width, height with sides above 0; left out, for a box is never invented."
        findings.warn("no-bbox", sentence, f"annotations[{place}] (id {item.get('id')!r:.40})")
        return NO_BOX
    left, top, width, height = box
    right, bottom = left + width, top + height
    corners = [left, top, right, top, right, bottom, left, bottom]
    area = item.get("area") if as_number(item.get("area")) else width * height
    return {**item, "segmentation": [corners], "area": area}


def _covers_pixels(segmentation: Segmentation, entry: ImageEntry) -> bool:
    """Return True where a mask certainly covers pixels, so that it need not be rasterized."""
    if isinstance(segmentation, Rle):
        return segmentation.columns[1] > 0
    for part in segmentation.parts:
        x, y = part[:, 0], part[:, 1]
        inside = x.min() >= 0 and y.min() >= 0 and x.max() <= entry.width and y.max() <= entry.height
        area = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
        if inside and area > SMALL_POLYGON and area > 2 * float(np.ptp(x) + np.ptp(y)):
            return True
    return False
