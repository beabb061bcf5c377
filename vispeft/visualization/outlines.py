"""Outlines of the annotations and detections of one image, matched to each other, for an SVG picture."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from vispeft.coco.rle import decode_columns, run_lengths, to_rle
from vispeft.visualization.colours import spread_hue

MATCH_IOU = 0.5
# characters of the outlines of one picture; further outlines are left out
_MAX_CHARACTERS = 60_000


@dataclass(frozen=True)
class Item:
    """One annotation or detection of an image. score: None for an annotation"""

    category_id: int
    rle: dict[str, Any]
    score: float | None


@dataclass(frozen=True)
class Matching:
    """Matches of the detections and annotations of an image.

    detection_idx: for each annotation the index of its detection, or None for a false negative
    iou: for each detection the IoU with its annotation, or None for a false positive
    """

    detection_idx: tuple[int | None, ...]
    iou: tuple[float | None, ...]

    @property
    def num_true_positives(self) -> int:
        return sum(iou is not None for iou in self.iou)

    @property
    def num_false_positives(self) -> int:
        return len(self.iou) - self.num_true_positives

    @property
    def num_false_negatives(self) -> int:
        return len(self.detection_idx) - self.num_true_positives

    @property
    def f1(self) -> float:
        """F1 score; 1 if there are neither annotations nor detections."""
        total = len(self.detection_idx) + len(self.iou)
        return 2 * self.num_true_positives / total if total else 1.0


@dataclass(frozen=True)
class Style:
    """Appearance of one instance.

    title: shown when the pointer is over it; label: written beside it
    hue: a number that becomes a colour
    is_matched: drawn with a solid line, others with a dashed one
    """

    title: str
    label: str
    hue: int
    is_matched: bool


@dataclass(frozen=True)
class Canvas:
    """Size of a picture in its own units. scale: from image pixels to these units"""

    width: float
    height: float
    scale: float


@dataclass(frozen=True)
class Outline:
    """One instance as the page draws it, in the picture's own units.

    path: data of an SVG path
    box: left, top, width, height
    label: text and its left end and baseline; None if there is no room for it
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


def match(annotations: Sequence[Item], detections: Sequence[Item]) -> Matching:
    """Match each detection, best first, to the unmatched annotation of its class with the highest IoU, from 0.5 on."""
    detection_idx: list[int | None] = [None] * len(annotations)
    iou: list[float | None] = [None] * len(detections)
    if annotations and detections:
        overlaps = mask_utils.iou(
            [one.rle for one in detections], [one.rle for one in annotations], [0] * len(annotations)
        )
        for detection, item in enumerate(detections):
            unmatched = [
                index
                for index, one in enumerate(annotations)
                if detection_idx[index] is None and one.category_id == item.category_id
            ]
            best = max(unmatched, key=lambda index: overlaps[detection, index], default=None)
            if best is not None and overlaps[detection, best] >= MATCH_IOU:
                detection_idx[best] = detection
                iou[detection] = float(overlaps[detection, best])
    return Matching(tuple(detection_idx), tuple(iou))


def draw_outlines(items: Sequence[Item], styles: Sequence[Style], canvas: Canvas) -> tuple[list[Outline], int]:
    """Return the outlines to draw, large ones first, and the number of items that are left out."""
    drawn: list[tuple[float, Outline]] = []
    taken: list[tuple[float, float, float, float]] = []
    room = _MAX_CHARACTERS
    for item, style in zip(items, styles, strict=True):
        path = _path(item.rle, canvas.scale)
        room -= len(path)
        if room < 0:
            break
        x, y, width, height = (round(float(value) * canvas.scale, 1) for value in mask_utils.toBbox(item.rle))
        box = (x, y, width, height)
        label = _place_label(style.label, box, canvas, taken)
        drawn.append((width * height, Outline(path, box, _colour(style.hue), style.title, style.is_matched, label)))
    num_left_out = len(items) - len(drawn)
    return [outline for _, outline in sorted(drawn, key=lambda pair: -pair[0])], num_left_out


def label_size(width: float) -> float:
    """Return the height of label text in the units of a picture of this width."""
    return round(width / 26, 1)


def _path(rle: dict[str, Any], scale: float) -> str:
    """Return the outline of a mask, holes included, as an SVG path, simplified to half a pixel."""
    left, top, width, height = (int(value) for value in mask_utils.toBbox(rle))
    mask = decode_columns(run_lengths(rle["counts"]), rle["size"][0], left, left + width)[top : top + height]
    if not mask.size:
        return ""
    # at four times the size the outline follows pixel edges rather than pixel centres
    enlarged = np.ascontiguousarray(mask.repeat(4, axis=0).repeat(4, axis=1))
    contours, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 2.2, True)[:, 0]
        if len(points) < 3:
            continue
        places = ((points + 0.5) / 4 + (left, top)) * scale
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + "Z")
    return "".join(parts)


def _place_label(
    text: str,
    box: tuple[float, float, float, float],
    canvas: Canvas,
    taken: list[tuple[float, float, float, float]],
) -> tuple[str, float, float] | None:
    """Return a label with a left end and baseline at which it covers no other label, or None.

    taken: rectangles of the labels so far; a placed label is added
    """
    height = label_size(canvas.width)
    width = 0.6 * height * len(text)
    x, y, _, box_height = box
    left = min(max(x, 0.0), max(canvas.width - width, 0.0))
    for top in (y - height, y, y + box_height):
        top = min(max(top, 0.0), canvas.height - 1.15 * height)
        rectangle = (left, top, left + width, top + height)
        if text and not any(_overlap(rectangle, other) for other in taken):
            taken.append(rectangle)
            return text, round(left, 1), round(top + 0.85 * height, 1)
    return None


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _colour(number: int) -> str:
    """Return a colour that is visible on light and dark pictures, far from those of nearby numbers."""
    red, green, blue = colorsys.hls_to_rgb(spread_hue(number), 0.62, 0.95)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
