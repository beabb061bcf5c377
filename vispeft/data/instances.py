"""Single annotations out of a COCO file: each is used, mended or left out, and the last two are told by id."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from vispeft.data.problems import Findings, show
from vispeft.data.segmentation import (
    FARTHEST_COORDINATE,
    Flaw,
    Polygons,
    Rle,
    Segmentation,
    parse_segmentation,
    to_rle,
)
from vispeft.data.sets import Annotation, Category, ImageEntry
from vispeft.data.values import as_integer, as_number, new_ids

SMALL = 16.0
"""Square pixels of polygon area below which a mask is drawn to see whether it covers any pixel."""


def read_annotations(
    raw: list[Any],
    categories: Mapping[int, Category],
    entries: Mapping[int, ImageEntry],
    listed: Set[int | None],
    findings: Findings,
) -> list[Annotation]:
    """The usable annotations in the order of the file, with unique ids above 0.

    listed: ids of all images in the file, also of those whose picture cannot be used and so are told already
    """
    category_idx = {identifier: idx for idx, identifier in enumerate(categories)}
    ids = _UniqueIds(raw)
    found = []
    seen: dict[Any, int] = {}
    for place, item in enumerate(raw):
        if not isinstance(item, dict):
            findings.warn("bad-annotation", "must be an object; left out.", f"annotations[{place}]")
            continue
        name = _name(item, place)
        if item.get("category_id") is None or as_integer(item["category_id"]) not in category_idx:
            findings.refuse(
                "unknown-category",
                "its category is not in `categories`; add it there or remove the annotation.",
                f"{name} (category_id {show(item.get('category_id'))})",
                repair="its category is not in `categories`; left out.",
            )
            continue
        entry = _entry_of(item, name, entries, listed, findings)
        if entry is None:
            continue
        annotation = _read_one(item, name, category_idx[int(item["category_id"])], entry, findings)
        if annotation is None:
            continue
        twin = seen.setdefault(_fingerprint(annotation), place)
        if twin != place:
            other = _name(raw[twin], twin)
            findings.warn("exact-duplicate", "the same instance twice; both are used.", f"{name} (as {other})")
        found.append(ids.assign(annotation, item, name, findings))
    return found


class _UniqueIds:
    """Gives annotations without a usable id of their own a new one, above all others."""

    def __init__(self, raw: list[Any]) -> None:
        given = (as_integer(item.get("id")) for item in raw if isinstance(item, dict))
        self._free = new_ids({identifier for identifier in given if identifier is not None})
        self._used: set[int] = set()

    def assign(self, annotation: Annotation, item: Mapping[str, Any], name: str, findings: Findings) -> Annotation:
        identifier = as_integer(item.get("id"))
        if identifier is not None and identifier > 0 and identifier not in self._used:
            self._used.add(identifier)
            return _with_id(annotation, identifier)
        if identifier is None:
            findings.warn(
                "no-annotation-id", "no integer `id`; given a new one.", f"{name} (id {show(item.get('id'))})"
            )
        elif identifier <= 0:
            findings.warn("annotation-id-zero", "pycocotools cannot score ids below 1; given a new one.", name)
        else:
            findings.warn("duplicate-annotation-id", "id used more than once; all are kept, with new ids.", name)
        return _with_id(annotation, next(self._free))


def _with_id(a: Annotation, identifier: int) -> Annotation:
    return Annotation(identifier, a.image_id, a.category_idx, a.is_crowd, a.segmentation, a.bbox, a.area)


def _name(item: Mapping[str, Any], place: int) -> str:
    identifier = item.get("id")
    return f"annotation {show(identifier)}" if as_integer(identifier) is not None else f"annotations[{place}]"


def _entry_of(
    item: Mapping[str, Any], name: str, entries: Mapping[int, ImageEntry], listed: Set[int | None], findings: Findings
) -> ImageEntry | None:
    image_id = as_integer(item.get("image_id"))
    if image_id is not None and image_id in entries:
        return entries[image_id]
    if image_id is None or image_id not in listed:
        subject = f"{name} (image_id {show(item.get('image_id'))})"
        findings.warn("unknown-image", "its image is not in `images`; left out.", subject)
    return None


def _read_one(
    item: Mapping[str, Any], name: str, category_idx: int, entry: ImageEntry, findings: Findings
) -> Annotation | None:
    crowd = item.get("iscrowd")
    if crowd is not None and crowd not in (0, 1):
        findings.warn("bad-iscrowd", "`iscrowd` must be 0 or 1; left out.", f"{name} ({show(crowd)})")
        return None
    segmentation = parse_segmentation(item.get("segmentation"), entry.height, entry.width)
    if isinstance(segmentation, Flaw):
        subject = f"{name} ({segmentation.detail})" if segmentation.detail else name
        findings.warn(segmentation.kind, segmentation.sentence + ".", subject)
        return None
    if isinstance(segmentation, Polygons):
        segmentation = _without_stubs(item["segmentation"], segmentation, name, findings)
    shape = _bbox_and_area(item, name, segmentation, entry, findings)
    if shape is None:
        return None
    return Annotation(0, entry.id, category_idx, bool(crowd), segmentation, *shape)


def _without_stubs(raw: list[Any], polygons: Polygons, name: str, findings: Findings) -> Polygons:
    if len(polygons.parts) < len(raw):
        sentence = "parts with fewer than three points are left out; the other parts are used."
        findings.warn("short-part", sentence, f"{name} ({len(raw) - len(polygons.parts)} of {len(raw)} parts)")
    return polygons


def _bbox_and_area(
    item: Mapping[str, Any], name: str, segmentation: Segmentation, entry: ImageEntry, findings: Findings
) -> tuple[tuple[float, float, float, float], float] | None:
    """The file's own where they are valid, else those of the mask. None for a mask without a pixel."""
    has_both = item.get("bbox") is not None and as_number(item.get("area")) is not None
    rle = None
    if not (has_both and _surely_covers(segmentation, entry)):
        rle = to_rle(segmentation, entry.height, entry.width)
        if coco_mask.area(rle) == 0:
            findings.warn("empty-mask", "its mask covers no pixel of the image; left out.", name)
            return None
    bbox, area = _valid_bbox(item, name, findings), _valid_area(item, name, findings)
    if bbox is not None and not _is_around(bbox, segmentation):
        bbox = _told_off(bbox, segmentation, name, findings)
    if bbox is not None and area is not None:
        return bbox, area
    rle = rle or to_rle(segmentation, entry.height, entry.width)
    x, y, width, height = (float(v) for v in coco_mask.toBbox(rle))
    return bbox or (x, y, width, height), area or float(coco_mask.area(rle))


def _told_off(
    bbox: tuple[float, float, float, float], segmentation: Segmentation, name: str, findings: Findings
) -> tuple[float, float, float, float] | None:
    """The box, of which is told that it lies off the mask; None where a file is repaired."""
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
    numbers = [as_number(v) for v in raw] if isinstance(raw, list) else []
    sane = [number for number in numbers if number is not None and abs(number) <= FARTHEST_COORDINATE]
    if len(numbers) == len(sane) == 4:
        x, y, width, height = sane
        if width > 0 and height > 0:
            return x, y, width, height
    findings.warn(
        "bad-bbox", "`bbox` is no valid x, y, width, height; the box of the mask is used.", f"{name} {show(raw)}"
    )
    return None


def _valid_area(item: Mapping[str, Any], name: str, findings: Findings) -> float | None:
    raw = item.get("area")
    area = as_number(raw)
    if raw is not None and (area is None or area <= 0):
        findings.warn(
            "bad-area", "`area` must be a positive number; the area of the mask is used.", f"{name} ({show(raw)})"
        )
        return None
    return area


def _is_around(bbox: tuple[float, float, float, float], segmentation: Segmentation) -> bool:
    """True where a box and the mask's own share at least half of their union."""
    low, high = np.array(bbox[:2]), np.array(bbox[:2]) + bbox[2:]
    mask_low, mask_high = segmentation.extent
    shared = np.clip(np.minimum(high, mask_high) - np.maximum(low, mask_low), 0, None).prod()
    union = (high - low).prod() + (mask_high - mask_low).prod() - shared
    return bool(2 * shared >= union)


def _surely_covers(segmentation: Segmentation, entry: ImageEntry) -> bool:
    """True where a mask covers pixels for certain, so that it need not be drawn to know."""
    if isinstance(segmentation, Rle):
        return segmentation.columns[1] > 0
    for part in segmentation.parts:
        x, y = part[:, 0], part[:, 1]
        inside = x.min() >= 0 and y.min() >= 0 and x.max() <= entry.width and y.max() <= entry.height
        area = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
        if inside and area > SMALL and area > 2 * float(np.ptp(x) + np.ptp(y)):
            return True
    return False


def _fingerprint(annotation: Annotation) -> Any:
    segmentation = annotation.segmentation
    if isinstance(segmentation, Rle):
        content: Any = hash(segmentation.runs.tobytes())
    else:
        content = hash(tuple(part.tobytes() for part in segmentation.parts))
    return annotation.image_id, annotation.category_idx, annotation.is_crowd, content
