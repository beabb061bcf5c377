"""Outlines of the annotations and detections of one image, matched to each other, for a vector picture."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.rle import to_rle

MATCH_IOU = 0.5
_GOLDEN_RATIO = 0.618034
# characters of the outlines of one panel; what is beyond is left out
_MOST_OUTLINE = 60_000


@dataclass(frozen=True)
class Item:
    """One annotation or detection of an image. score: None for an annotation"""

    category_id: int
    rle: dict[str, Any]
    score: float | None


@dataclass(frozen=True)
class Matching:
    """Matches of the detections and annotations of an image: best score first, each with its best free match.

    found_by: for each annotation the index of its detection, or None
    iou: for each detection the IoU with its annotation, or None for a false positive
    """

    found_by: tuple[int | None, ...]
    iou: tuple[float | None, ...]

    @property
    def num_found(self) -> int:
        return sum(one is not None for one in self.found_by)

    @property
    def num_wrong(self) -> int:
        return sum(one is None for one in self.iou)

    @property
    def score(self) -> float:
        """F1 score; 1 if there are neither annotations nor detections."""
        total = len(self.found_by) + len(self.iou)
        return 2 * self.num_found / total if total else 1.0


@dataclass(frozen=True)
class Outline:
    """One instance as the page draws it, in the picture's own units.

    path: data of an SVG path; box: left, top, width, height; label: text and its start, None if there is no room
    """

    path: str
    box: tuple[float, float, float, float]
    colour: str
    title: str
    is_matched: bool
    label: tuple[str, float, float] | None


def items_of(entries: Sequence[Mapping[str, Any]], height: int, width: int) -> list[Item]:
    """Return the annotations or results of one image whose masks can be read, best score first."""
    items = []
    for entry in entries:
        try:
            rle = to_rle(entry.get("segmentation"), height, width)
        except ValueError:
            continue
        items.append(Item(entry["category_id"], rle, entry.get("score")))
    return sorted(items, key=lambda item: -(item.score or 0.0))


def match(truth: Sequence[Item], found: Sequence[Item]) -> Matching:
    """Match detections, best first, to annotations of their class with a mask IoU of at least 0.5."""
    found_by: list[int | None] = [None] * len(truth)
    iou: list[float | None] = [None] * len(found)
    if truth and found:
        overlaps = mask_utils.iou([one.rle for one in found], [one.rle for one in truth], [0] * len(truth))
        for detection, item in enumerate(found):
            free = [
                index
                for index, one in enumerate(truth)
                if found_by[index] is None and one.category_id == item.category_id
            ]
            best = max(free, key=lambda index: overlaps[detection, index], default=None)
            if best is not None and overlaps[detection, best] >= MATCH_IOU:
                found_by[best] = detection
                iou[detection] = float(overlaps[detection, best])
    return Matching(tuple(found_by), tuple(iou))


def outlines(
    items: Sequence[Item],
    titles: Sequence[str],
    labels: Sequence[str],
    hues: Sequence[int],
    matched: Sequence[bool],
    *,
    factor: float,
    size: tuple[float, float],
) -> tuple[list[Outline], int]:
    """Return the outlines to draw, large ones first, and the number of those left out.

    hues: numbers that become colours
    factor: from image pixels to units of the picture; size: width and height of the picture in its units
    """
    drawn: list[tuple[float, Outline]] = []
    taken: list[tuple[float, float, float, float]] = []
    room = _MOST_OUTLINE
    for item, title, label, hue, is_matched in zip(items, titles, labels, hues, matched, strict=True):
        path = _path(item.rle, factor)
        room -= len(path)
        if room < 0:
            break
        x, y, width, height = (round(float(value) * factor, 1) for value in mask_utils.toBbox(item.rle))
        place = _place_label(label, (x, y, width, height), size, taken)
        drawn.append((width * height, Outline(path, (x, y, width, height), _colour(hue), title, is_matched, place)))
    left_out = len(items) - len(drawn)
    return [outline for _, outline in sorted(drawn, key=lambda pair: -pair[0])], left_out


def label_size(width: float) -> float:
    """Return the height of label text in the units of a picture of this width."""
    return round(width / 26, 1)


def _path(rle: dict[str, Any], factor: float) -> str:
    """Return the outline of a mask, holes included, as an SVG path, simplified to half a pixel."""
    left, top, width, height = (int(value) for value in mask_utils.toBbox(rle))
    mask: NDArray[np.uint8] = mask_utils.decode(rle)[top : top + height, left : left + width]
    if not mask.size:
        return ""
    # at four times the size the outline runs along pixel edges rather than through their centres
    enlarged = np.ascontiguousarray(mask.repeat(4, axis=0).repeat(4, axis=1))
    contours, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 2.2, True)[:, 0]
        if len(points) < 3:
            continue
        places = ((points + 0.5) / 4 + (left, top)) * factor
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + "Z")
    return "".join(parts)


def _place_label(
    text: str,
    box: tuple[float, float, float, float],
    size: tuple[float, float],
    taken: list[tuple[float, float, float, float]],
) -> tuple[str, float, float] | None:
    """Return a label with a start (left, baseline) at which it covers no other label, or None."""
    height = label_size(size[0])
    width = 0.6 * height * len(text)
    x, y, _, box_height = box
    left = min(max(x, 0.0), max(size[0] - width, 0.0))
    for top in (y - height, y, y + box_height):
        top = min(max(top, 0.0), size[1] - 1.15 * height)
        rectangle = (left, top, left + width, top + height)
        if text and not any(_overlap(rectangle, other) for other in taken):
            taken.append(rectangle)
            return text, round(left, 1), round(top + 0.85 * height, 1)
    return None


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _colour(number: int) -> str:
    """Return a colour that is visible on light and dark pictures, far from those of nearby numbers."""
    red, green, blue = colorsys.hls_to_rgb(number * _GOLDEN_RATIO % 1, 0.62, 0.95)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
