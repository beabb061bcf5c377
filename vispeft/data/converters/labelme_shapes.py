"""Shapes of a LabelMe file as outlines and masks in pixels of the image."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vispeft.coco.problems import Findings, show
from vispeft.coco.segmentation import rasterize
from vispeft.coco.values import as_number

# names of oriented boxes, stored as four corners, in LabelMe, X-AnyLabeling and other tools
_POLYGONS = ("polygon", "oriented_rectangle", "rotated_rectangle", "rotation", "quadrilateral")
_CIRCLE_CORNERS = 90
# labels that LabelMe's own converters treat as background
_NO_OBJECT = ("__ignore__", "_background_")
_LEAST = {"rectangle": 2, "circle": 2, "mask": 2}


@dataclass(frozen=True)
class Stamp:
    """A dense mask whose upper left pixel lies at `left`, `top` of the image."""

    mask: NDArray[np.bool_]
    left: int
    top: int


Outline = NDArray[np.float64] | Stamp


@dataclass(frozen=True)
class Shape:
    """One shape. group: shapes of one label and group are parts of one instance; None for a complete instance."""

    label: str
    group: Any
    outline: Outline


def read_shape(raw: dict[str, Any], subject: str, findings: Findings) -> Shape | None:
    """Return a shape with an area. Report a shape without one or a broken one and return None."""
    label = raw.get("label")
    text = str(label).strip() if isinstance(label, str | int | float) and not isinstance(label, bool) else ""
    if not text:
        findings.refuse("no-label", "shapes without a label; add one or delete the shape.", subject)
        return None
    if text != label and isinstance(label, str):
        findings.warn("spaces", "spaces around the label are removed.", f"{show(label)} in {subject}")
    if text in _NO_OBJECT:
        findings.warn("no-object", "LabelMe's label for background; left out.", f"{show(text)} in {subject}")
        return None
    kind = raw.get("shape_type") or "polygon"
    if kind not in (*_POLYGONS, "rectangle", "circle", "mask"):
        sentence = f"shapes of type {show(kind)} have no known area; left out."
        findings.warn("no-area", sentence, f"{show(text)} in {subject}")
        return None
    points = _points(raw.get("points"), _LEAST.get(kind, 3))
    if points is None:
        findings.warn("no-points", "has no valid `points`; left out.", f"the {kind} {show(text)} in {subject}")
        return None
    outline = _outline(kind, points, raw.get("mask"))
    if isinstance(outline, str):
        findings.warn("no-outline", f"{outline}; left out.", f"the {kind} {show(text)} in {subject}")
        return None
    group = raw.get("group_id")
    return Shape(text, None if group == "" else group, outline)


def draw(outlines: Sequence[Outline], height: int, width: int) -> NDArray[np.bool_]:
    """Return the union of outlines as a dense mask, [height, width]."""
    union = np.zeros((height, width), np.uint8)
    for outline in outlines:
        if isinstance(outline, Stamp):
            top, left = max(outline.top, 0), max(outline.left, 0)
            part = outline.mask[top - outline.top :, left - outline.left :][: height - top, : width - left]
            union[top : top + part.shape[0], left : left + part.shape[1]] |= part
        else:
            drawn = np.zeros_like(union)
            rasterize([outline], height, width, drawn)
            union |= drawn
    return union > 0


def _points(raw: Any, least: int) -> NDArray[np.float64] | None:
    pairs = raw if isinstance(raw, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in raw) else []
    numbers = [as_number(value) for pair in pairs for value in pair]
    if any(value is None for value in numbers) or len(pairs) < least:
        return None
    return np.array(numbers, np.float64).reshape(-1, 2)


def _outline(kind: str, points: NDArray[np.float64], mask: Any) -> Outline | str:
    """Return the outline, or a text about its fault."""
    if kind == "mask":
        return _stamp(points, mask)
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        angles = np.linspace(0, 2 * np.pi, _CIRCLE_CORNERS, endpoint=False)
        # of the circle's area
        radius *= np.sqrt(2 * np.pi / _CIRCLE_CORNERS / np.sin(2 * np.pi / _CIRCLE_CORNERS))
        rim: NDArray[np.float64] = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        return rim
    if kind == "rectangle" and len(points) == 3:
        return "has three points, not two or four"
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return points if len(points) > 2 else "has no valid `points`"


def _stamp(points: NDArray[np.float64], encoded: Any) -> Stamp | str:
    if not isinstance(encoded, str):
        return "has no `mask` with a PNG in base64"
    try:
        data = base64.b64decode(encoded.rpartition("base64,")[2], validate=False)
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    # image decoders raise exceptions of many types on damaged bytes
    except Exception:
        return "has a `mask` that is not a PNG in base64"
    mask = _drawn(pixels)
    (left, top), (right, bottom) = np.round([points[:2].min(0), points[:2].max(0)]).astype(int)
    height, width = bottom - top + 1, right - left + 1
    if abs(mask.shape[0] - height) > 1 or abs(mask.shape[1] - width) > 1:
        return f"has a `mask` of {mask.shape[1]}x{mask.shape[0]} pixels in a box of {width}x{height}"
    return Stamp(mask, int(left), int(top))


def _drawn(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the pixels that are neither black nor transparent. pixels: [h, w], or [h, w, n], n of 2 or 4 with alpha"""
    if pixels.ndim == 2:
        return np.asarray(pixels > 0)
    has_alpha = pixels.shape[2] in (2, 4)
    drawn = (pixels[:, :, : pixels.shape[2] - has_alpha] > 0).any(2)
    return np.asarray(drawn & (pixels[:, :, -1] > 0) if has_alpha else drawn)
