"""Wrong forms of `segmentation` that other tools write: message for each, and conversion to COCO's form."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vispeft.coco.text import number_of, read_bytes, read_text
from vispeft.coco.values import as_integer, as_number

_FLAT = "write each polygon as one flat list [x1, y1, x2, y2, ...]"

SENTENCES = {
    "text-segmentation": "`segmentation` is text; write the list or the object itself, without quotes around it",
    "flat-polygon": "`segmentation` is one flat list of numbers; wrap it in one more list: [[x1, y1, x2, y2, ...]]",
    "point-pairs": f"the points of `segmentation` are pairs [x, y]; {_FLAT}",
    "point-objects": f"the points of `segmentation` are objects with x and y; {_FLAT}",
    "coordinate-lists": f"`segmentation` holds the x and the y of its points apart; {_FLAT}",
    "nested-polygon": f"the polygons of `segmentation` are nested in one list too many; {_FLAT}, in one list",
    "geojson": f"`segmentation` is a GeoJSON object; {_FLAT}",
    "text-numbers": "`segmentation` has numbers that are text; write them without quotes",
    "null-part": "`segmentation` has a polygon that is null; take it out",
    "listed-rle": "`segmentation` is a list around an RLE object; write the object itself",
    "bytes-counts": "`counts` of the RLE is the printed form of Python bytes, b'...'; decode it to text before writing",
    "text-counts": "`counts` of the RLE is the text of a list; write the list itself, without quotes around it",
    "text-in-counts": "`counts` of the RLE has numbers that are text; write them without quotes",
    "text-size": "`size` of the RLE is text; write it as numbers [height, width]",
    "dense-mask": "`segmentation` is a mask of one number a pixel, row by row; write its outline or its run lengths",
    "relative-coordinates": "the coordinates of `segmentation` lie in 0..1; multiply x by the width of the image and "
    "y by its height",
}
"""Fault and remedy by the name of the form."""

DEEPEST = 6
_POINT_LISTS = (("x", "y"), ("all_points_x", "all_points_y"))
_RELATIVE_BELOW = 1.001


@dataclass(frozen=True)
class NormalisedSegmentation:
    """Segmentation converted to COCO's form where possible, and the names of the wrong forms that it had."""

    value: Any
    forms: tuple[str, ...]


def normalise_segmentation(value: Any) -> NormalisedSegmentation:
    """Return a `segmentation` with known wrong forms rewritten. Its reader checks whether the numbers are valid."""
    forms: dict[str, None] = {}
    if isinstance(value, str) and (read := read_text(value)) is not None:
        forms["text-segmentation"] = None
        value = read
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "counts" in value[0]:
        forms["listed-rle"] = None
        value = value[0]
    if isinstance(value, dict):
        value = _normalised_rle(value, forms) if "counts" in value else _from_object(value, forms)
    if isinstance(value, list) and _is_dense_mask(value):
        return NormalisedSegmentation(_run_lengths(value), (*forms, "dense-mask"))
    if isinstance(value, list) and not all(map(_is_flat, value)):
        polygons = _polygons(value, 0, found := dict(forms))
        if polygons:
            return NormalisedSegmentation(polygons, tuple(found))
    return NormalisedSegmentation(value, tuple(forms))


def _is_flat(part: Any) -> bool:
    """Return True for a polygon in COCO's form, as nearly all are; of two numbers, a part may be a point instead."""
    return isinstance(part, list) and len(part) != 2 and set(map(type, part)) <= {int, float}


def _is_dense_mask(value: list[Any]) -> bool:
    """Return True for at least three rows of 0 and 1, or false and true, all of one length."""
    if len(value) < 3 or not isinstance(value[0], list) or len(value[0]) < 3:
        return False
    width = len(value[0])
    return all(isinstance(row, list) and len(row) == width and all(one in (0, 1) for one in row) for row in value)


def _run_lengths(rows: list[list[int]]) -> dict[str, Any]:
    """Return the uncompressed RLE of a dense mask, column by column."""
    runs = [
        (bool(value), len(list(run))) for value, run in itertools.groupby(itertools.chain(*zip(*rows, strict=True)))
    ]
    counts = [length for _, length in runs]
    return {"size": [len(rows), len(rows[0])], "counts": [0, *counts] if runs[0][0] else counts}


def _from_object(value: dict[str, Any], forms: dict[str, None]) -> Any:
    """Return the polygons of an object that is no RLE, or the object itself."""
    for keys in _POINT_LISTS:
        columns = [value.get(key) for key in keys]
        if all(isinstance(column, list) for column in columns) and len(columns[0] or ()) == len(columns[1] or ()) > 0:
            forms["coordinate-lists"] = None
            return [[number for point in zip(*columns, strict=True) for number in point]]
    rings = value.get("coordinates")
    parts = {"Polygon": [rings], "MultiPolygon": rings}.get(str(value.get("type")))
    # a second ring would be a hole, which COCO's polygons cannot hold
    if isinstance(parts, list) and parts and all(isinstance(part, list) and len(part) == 1 for part in parts):
        forms["geojson"] = None
        return _polygons(parts, 0, {}) or value
    return value


def _polygons(node: list[Any], depth: int, forms: dict[str, None]) -> list[list[Any]] | None:
    """Return the flat polygons that a list holds in any nesting, or None where it holds something else."""
    if not node or depth > DEEPEST:
        return [node] if depth else None
    numbers = list(map(number_of, node))
    if all(map(_is_coordinate, numbers)):
        if any(isinstance(one, str) for one in node):
            forms["text-numbers"] = None
        if depth != 1:
            forms["flat-polygon" if depth == 0 else "nested-polygon"] = None
        return [numbers]
    if len(node) >= 3 and (points := _points(node, forms)) is not None:
        if depth > 1:
            forms["nested-polygon"] = None
        return [points]
    polygons: list[list[Any]] = []
    for child in node:
        if child is None and len(node) > 1:
            forms["null-part"] = None
            continue
        below = _polygons(child, depth + 1, forms) if isinstance(child, list) else None
        if below is None:
            return None
        polygons += below
    return polygons


def _points(node: list[Any], forms: dict[str, None]) -> list[Any] | None:
    """Return x1, y1, x2, y2, ... of a list of points, or None where it is none."""
    numbers: list[Any] = []
    form = "point-pairs"
    for point in node:
        # OpenCV's contours hold each point in a list of its own
        pair = point[0] if isinstance(point, list) and len(point) == 1 else point
        if isinstance(pair, dict):
            pair, form = [pair.get("x"), pair.get("y")], "point-objects"
        if not isinstance(pair, list) or len(pair) != 2:
            return None
        numbers += map(number_of, pair)
    if not all(map(_is_coordinate, numbers)):
        return None
    forms[form] = None
    return numbers


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _normalised_rle(value: dict[str, Any], forms: dict[str, None]) -> dict[str, Any]:
    """Return an RLE object with `size` and `counts` in COCO's types where they can be converted."""
    size, counts = value.get("size"), value.get("counts")
    if isinstance(size, str) and (read := read_text(size)) is not None:
        forms["text-size"] = None
        size = read
    if isinstance(size, list):
        size = _integers(size, "text-size", forms)
    if isinstance(counts, str):
        counts = _normalised_counts(counts, forms)
    elif isinstance(counts, list):
        counts = _integers(counts, "text-in-counts", forms)
    if size is value.get("size") and counts is value.get("counts"):
        return value
    return {**value, "size": size, "counts": counts}


def _normalised_counts(counts: str, forms: dict[str, None]) -> Any:
    if (text := read_bytes(counts)) is not None:
        forms["bytes-counts"] = None
        return text
    # neither a comma nor a space is a character of compressed counts
    if ("," in counts or " " in counts.strip()) and isinstance(read := read_text(counts), list):
        forms["text-counts"] = None
        return _integers(read, "text-in-counts", forms)
    return counts


def _integers(values: list[Any], form: str, forms: dict[str, None]) -> list[Any]:
    """Return the list with whole numbers and their text as integers; the same list where all are integers."""
    if set(map(type, values)) <= {int}:
        return values
    integers = [number if (number := as_integer(number_of(value))) is not None else value for value in values]
    if any(isinstance(old, str) and new is not old for old, new in zip(values, integers, strict=True)):
        forms[form] = None
    return integers


def holds_relative(segmentations: Iterable[Any]) -> bool:
    """Return True where all polygons of a file have coordinates in 0..1, relative to the image size."""
    found = False
    for segmentation in segmentations:
        for part in _flat_parts(normalise_segmentation(segmentation).value):
            if any(not 0 <= number <= _RELATIVE_BELOW for number in part):
                return False
            found = found or any(0 < number < 1 for number in part)
    return found


def to_pixels(polygons: Sequence[Sequence[float]], height: int, width: int) -> list[list[float]]:
    """Return polygons with coordinates in 0..1 as polygons in pixels."""
    return [[number * (height if place % 2 else width) for place, number in enumerate(part)] for part in polygons]


def _flat_parts(value: Any) -> list[list[float]]:
    parts = value if isinstance(value, list) else []
    return [[n for one in part if (n := as_number(one)) is not None] for part in parts if isinstance(part, list)]
