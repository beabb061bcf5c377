"""Annotations of a COCO file: each is used, mended or left out; the last two are reported by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from vispeft.coco.problems import Findings, show
from vispeft.coco.references import References
from vispeft.coco.segmentation import (
    FARTHEST_COORDINATE,
    Flaw,
    Polygons,
    Rle,
    Segmentation,
    parse_segmentation,
    to_rle,
)
from vispeft.coco.segmentation_forms import SENTENCES, holds_relative, scale_up, straighten
from vispeft.coco.sets import Annotation, Category, ImageEntry
from vispeft.coco.values import as_flag, as_integer, as_number, flag_of_text, new_ids

SMALL = 16.0
"""Square pixels of polygon area below which a mask is drawn to see whether it covers any pixel."""

FEWEST_FOR_PERCENT = 4
"""Annotations from which on coordinates that end just below 100 are taken for a sign of percent."""


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
    references = References(raw, categories, entries, listed, findings)
    is_relative = holds_relative(item.get("segmentation") for item in raw if isinstance(item, dict))
    ids = _UniqueIds(raw)
    found = []
    seen: dict[Any, int] = {}
    for place, item in enumerate(raw):
        if not isinstance(item, dict):
            findings.warn("bad-annotation", "must be an object; left out.", f"annotations[{place}]")
            continue
        name = _name(item, place)
        annotation = _read_one(item, name, references, is_relative, findings)
        if annotation is None:
            continue
        twin = seen.setdefault(_fingerprint(annotation), place)
        if twin != place:
            other = _name(raw[twin], twin)
            findings.warn("exact-duplicate", "the same instance twice; both are used.", f"{name} (as {other})")
        found.append(ids.assign(annotation, item, name, findings))
    _tell_of_percent(found, entries, findings)
    return found


def _tell_of_percent(found: Sequence[Annotation], entries: Mapping[int, ImageEntry], findings: Findings) -> None:
    """Warn where all polygons end just below 100 though every image is far larger, as coordinates in percent do."""
    ends = [a.segmentation.extent[1].max() for a in found if isinstance(a.segmentation, Polygons)]
    if len(ends) < FEWEST_FOR_PERCENT or len(ends) < len(found) or not 90 < max(ends) <= 100:
        return
    if all(min(entries[a.image_id].height, entries[a.image_id].width) > 200 for a in found):
        sentence = (
            "no coordinate is above 100, though every image is larger than 200 pixels: are they in percent, as in "
            "Label Studio's own format? Then multiply x by width / 100 and y by height / 100."
        )
        findings.warn("percent", sentence, "")


def tell_of_crowds(raw: list[Any], num_instances: int, findings: Findings) -> None:
    """Refuse a file of which nothing is left to train on; warn of one that is mostly crowd regions."""
    given = [item.get("iscrowd") for item in raw if isinstance(item, dict)]
    num_crowds = sum(bool(flag_of_text(value) or as_flag(value)) for value in given)
    remedy = "set it to 0 where a mask is one object."
    if given and num_crowds == len(given):
        sentence = f"no annotation is left that can be trained on: every annotation has `iscrowd` 1; {remedy}"
        findings.refuse("all-crowds", sentence, "")
        return
    if 2 * num_crowds > len(given):
        sentence = f"{num_crowds} of {len(given)} annotations have `iscrowd` 1 and are not trained on; {remedy}"
        findings.warn("mostly-crowds", sentence, "")
    if num_instances == 0 and not findings.is_refused:
        findings.refuse("no-instances", "no annotation is left that can be trained on.", "")


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


def _read_one(
    item: Mapping[str, Any], name: str, references: References, is_relative: bool, findings: Findings
) -> Annotation | None:
    """Read one annotation, or return None. All its problems are reported at once."""
    category_idx = references.category_of(item, name)
    entry = references.entry_of(item, name)
    is_crowd = _crowd_of(item, name, findings)
    straight = _straight(item, name, findings)
    if entry is None:
        return None
    if is_relative and isinstance(straight, list):
        item, straight = _in_pixels(item, name, straight, entry, findings)
    segmentation = _usable(straight, name, entry, item.get("bbox"), findings)
    if category_idx is None or is_crowd is None or segmentation is None:
        return None
    shape = _bbox_and_area(item, name, segmentation, entry, findings)
    return None if shape is None else Annotation(0, entry.id, category_idx, is_crowd, segmentation, *shape)


def _crowd_of(item: Mapping[str, Any], name: str, findings: Findings) -> bool | None:
    raw = item.get("iscrowd")
    is_crowd = as_flag(raw)
    if (spelt := flag_of_text(raw)) is not None:
        sentence = "`iscrowd` is text; write the number 0 or 1, without quotes."
        findings.refuse("text-iscrowd", sentence, name, repair="`iscrowd` was text; read as a number.")
        return spelt
    if is_crowd is None:
        findings.warn("bad-iscrowd", "`iscrowd` must be 0 or 1; left out.", f"{name} ({show(raw)})")
    return is_crowd


def _straight(item: Mapping[str, Any], name: str, findings: Findings) -> Any:
    """The segmentation in COCO's form; a known wrong form is refused by name, and rewritten in a repaired copy."""
    straight = straighten(item.get("segmentation"))
    for form in straight.forms:
        sentence = SENTENCES[form]
        findings.refuse(form, f"{sentence}.", name, repair=f"{sentence.split(';')[0]}; rewritten.")
    return straight.value


def _in_pixels(
    item: Mapping[str, Any], name: str, polygons: list[Any], entry: ImageEntry, findings: Findings
) -> tuple[Mapping[str, Any], Any]:
    """An annotation and its polygons with coordinates in pixels; its `bbox` and `area` are the mask's."""
    if isinstance(parse_segmentation(polygons, entry.height, entry.width), Flaw) or max(entry.height, entry.width) < 3:
        return item, polygons
    sentence = SENTENCES["relative-coordinates"]
    findings.refuse("relative-coordinates", f"{sentence}.", name, repair=f"{sentence.split(';')[0]}; multiplied.")
    return {**item, "bbox": None, "area": None}, scale_up(polygons, entry.height, entry.width)


def _usable(straight: Any, name: str, entry: ImageEntry, bbox: Any, findings: Findings) -> Segmentation | None:
    segmentation = parse_segmentation(straight, entry.height, entry.width)
    if isinstance(segmentation, Flaw) and segmentation.kind == "rle-size":
        segmentation = _with_size_turned(straight, name, entry, bbox, segmentation, findings)
    if isinstance(segmentation, Flaw):
        subject = f"{name} ({segmentation.detail})" if segmentation.detail else name
        findings.warn(segmentation.kind, segmentation.sentence + ".", subject)
        return None
    if isinstance(segmentation, Polygons):
        segmentation = _without_stubs(straight, segmentation, name, findings)
    return segmentation


def _with_size_turned(
    rle: Any, name: str, entry: ImageEntry, bbox: Any, flaw: Flaw, findings: Findings
) -> Segmentation | Flaw:
    """The RLE with its image's size, where `size` is width and height and the `bbox` proves the order of counts."""
    turned = {**rle, "size": [entry.height, entry.width]}
    segmentation = parse_segmentation(turned, entry.height, entry.width)
    if rle["size"] != [entry.width, entry.height] or isinstance(segmentation, Flaw):
        return flaw
    if not isinstance(bbox, list) or (box := _four_numbers(bbox)) is None or not _is_around(box, segmentation):
        return Flaw("turned-rle", "`size` of the RLE is [width, height], but must be [height, width]; it is left out")
    sentence = "`size` of the RLE is [width, height]; write it as [height, width]."
    findings.refuse("turned-rle-size", sentence, name, repair="`size` of the RLE was [width, height]; turned.")
    return segmentation


def _without_stubs(raw: list[Any], polygons: Polygons, name: str, findings: Findings) -> Polygons:
    if len(polygons.parts) < len(raw):
        sentence = "parts with fewer than three points are left out; the other parts are used."
        findings.warn("short-part", sentence, f"{name} ({len(raw) - len(polygons.parts)} of {len(raw)} parts)")
    return polygons


def _bbox_and_area(
    item: Mapping[str, Any], name: str, segmentation: Segmentation, entry: ImageEntry, findings: Findings
) -> tuple[tuple[float, float, float, float], float] | None:
    """Box and area of an annotation: the file's where valid, else the mask's. None for a mask without a pixel."""
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
    box = _four_numbers(raw)
    if box is not None:
        return box
    findings.warn(
        "bad-bbox", "`bbox` is no valid x, y, width, height; the box of the mask is used.", f"{name} {show(raw)}"
    )
    return None


def _four_numbers(raw: Any) -> tuple[float, float, float, float] | None:
    """A box that is four finite numbers with sides above 0, or None."""
    numbers = [as_number(v) for v in raw] if isinstance(raw, list) else []
    sane = [number for number in numbers if number is not None and abs(number) <= FARTHEST_COORDINATE]
    if len(numbers) == len(sane) == 4 and min(sane[2:]) > 0:
        return sane[0], sane[1], sane[2], sane[3]
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
