"""Reader of the annotations of a COCO file. Annotations that are corrected or left out are reported by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from vispeft.coco.annotation_boxes import NO_BOX, box_and_area, overlaps_mask, trained_box
from vispeft.coco.problems import Findings, show
from vispeft.coco.references import References
from vispeft.coco.segmentation import (
    Flaw,
    Polygons,
    Rle,
    Segmentation,
    parse_segmentation,
)
from vispeft.coco.segmentation_forms import SENTENCES, holds_relative, normalise_segmentation, to_pixels
from vispeft.coco.sets import Annotation, Category, ImageEntry
from vispeft.coco.values import as_flag, as_integer, flag_of_text, new_ids

FEWEST_FOR_PERCENT = 4
"""Annotations from which on coordinates that end just below 100 are taken for a sign of percent."""


def read_annotations(
    raw: list[Any],
    categories: Mapping[int, Category],
    entries: Mapping[int, ImageEntry],
    listed: Set[int | None],
    findings: Findings,
) -> list[Annotation]:
    """Return the usable annotations in the order of the file, with unique ids above 0.

    raw: with `NO_BOX` in the place of each that is left out already
    listed: ids of all images in the file, also of those whose file cannot be used, which is reported already
    """
    references = References(raw, categories, entries, listed, findings)
    is_relative = holds_relative(item.get("segmentation") for item in raw if isinstance(item, dict))
    ids = _UniqueIds(raw)
    found = []
    seen: dict[Any, int] = {}
    for place, item in enumerate(raw):
        if item is NO_BOX:
            continue
        if not isinstance(item, dict):
            findings.warn("bad-annotation", "must be an object; left out.", f"annotations[{place}]")
            continue
        name = _name(item, place)
        annotation = _read_annotation(item, name, references, is_relative, findings)
        if annotation is None:
            continue
        twin = seen.setdefault(_fingerprint(annotation), place)
        if twin != place:
            other = _name(raw[twin], twin)
            findings.warn("exact-duplicate", "the same instance twice; both are used.", f"{name} (as {other})")
        found.append(replace(annotation, id=ids.take(item, name, findings), place=place))
    _warn_of_percent(found, entries, findings)
    return found


def _warn_of_percent(found: Sequence[Annotation], entries: Mapping[int, ImageEntry], findings: Findings) -> None:
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


def check_crowds(raw: list[Any], num_instances: int, findings: Findings) -> None:
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
    """Unique ids of annotations: the file's own where it can be used, else a new one above all others."""

    def __init__(self, raw: list[Any]) -> None:
        given = (as_integer(item.get("id")) for item in raw if isinstance(item, dict))
        self._free = new_ids({identifier for identifier in given if identifier is not None})
        self._used: set[int] = set()

    def take(self, item: Mapping[str, Any], name: str, findings: Findings) -> int:
        """Return the id of an annotation, and report one that is not the file's own."""
        identifier = as_integer(item.get("id"))
        if identifier is not None and identifier > 0 and identifier not in self._used:
            self._used.add(identifier)
            return identifier
        if identifier is None:
            findings.warn(
                "no-annotation-id", "no integer `id`; given a new one.", f"{name} (id {show(item.get('id'))})"
            )
        elif identifier <= 0:
            findings.warn("annotation-id-zero", "pycocotools cannot score ids below 1; given a new one.", name)
        else:
            findings.warn("duplicate-annotation-id", "id used more than once; all are kept, with new ids.", name)
        return next(self._free)


def _name(item: Mapping[str, Any], place: int) -> str:
    identifier = item.get("id")
    return f"annotation {show(identifier)}" if as_integer(identifier) is not None else f"annotations[{place}]"


def _read_annotation(
    item: Mapping[str, Any], name: str, references: References, is_relative: bool, findings: Findings
) -> Annotation | None:
    """Read one annotation, or return None. All its problems are reported at once."""
    category_idx = references.category_of(item, name)
    entry = references.entry_of(item, name)
    is_crowd = _crowd_of(item, name, findings)
    normalised = _normalised_segmentation(item, name, findings)
    if entry is None:
        return None
    if is_relative and isinstance(normalised, list):
        item, normalised = _in_pixels(item, name, normalised, entry, findings)
    segmentation = _parsed(normalised, name, entry, item.get("bbox"), findings)
    if category_idx is None or is_crowd is None or segmentation is None:
        return None
    shape = box_and_area(item, name, segmentation, entry, findings)
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


def _normalised_segmentation(item: Mapping[str, Any], name: str, findings: Findings) -> Any:
    """Return the segmentation in COCO's form. A known wrong form is refused, or rewritten in a repaired copy."""
    normalised = normalise_segmentation(item.get("segmentation"))
    for form in normalised.forms:
        sentence = SENTENCES[form]
        findings.refuse(form, f"{sentence}.", name, repair=f"{sentence.split(';')[0]}; rewritten.")
    return normalised.value


def _in_pixels(
    item: Mapping[str, Any], name: str, polygons: list[Any], entry: ImageEntry, findings: Findings
) -> tuple[Mapping[str, Any], Any]:
    """Return an annotation and its polygons in pixels, without the `bbox` and `area` of the file."""
    if isinstance(parse_segmentation(polygons, entry.height, entry.width), Flaw) or max(entry.height, entry.width) < 3:
        return item, polygons
    sentence = SENTENCES["relative-coordinates"]
    findings.refuse("relative-coordinates", f"{sentence}.", name, repair=f"{sentence.split(';')[0]}; multiplied.")
    return {**item, "bbox": None, "area": None}, to_pixels(polygons, entry.height, entry.width)


def _parsed(raw: Any, name: str, entry: ImageEntry, bbox: Any, findings: Findings) -> Segmentation | None:
    segmentation = parse_segmentation(raw, entry.height, entry.width)
    if isinstance(segmentation, Flaw) and segmentation.kind == "rle-size":
        segmentation = _with_swapped_size(raw, name, entry, bbox, segmentation, findings)
    if isinstance(segmentation, Flaw):
        subject = f"{name} ({segmentation.detail})" if segmentation.detail else name
        findings.warn(segmentation.kind, segmentation.sentence + ".", subject)
        return None
    if isinstance(segmentation, Polygons):
        segmentation = _without_short_parts(raw, segmentation, name, findings)
    return segmentation


def _with_swapped_size(
    rle: Any, name: str, entry: ImageEntry, bbox: Any, flaw: Flaw, findings: Findings
) -> Segmentation | Flaw:
    """Return the RLE with its image's size, where `size` is width and height and `bbox` proves the order of counts."""
    turned = {**rle, "size": [entry.height, entry.width]}
    segmentation = parse_segmentation(turned, entry.height, entry.width)
    if rle["size"] != [entry.width, entry.height] or isinstance(segmentation, Flaw):
        return flaw
    if not isinstance(bbox, list) or (box := trained_box(bbox)) is None or not overlaps_mask(box, segmentation):
        return Flaw("turned-rle", "`size` of the RLE is [width, height], but must be [height, width]; it is left out")
    sentence = "`size` of the RLE is [width, height]; write it as [height, width]."
    findings.refuse("turned-rle-size", sentence, name, repair="`size` of the RLE was [width, height]; turned.")
    return segmentation


def _without_short_parts(raw: list[Any], polygons: Polygons, name: str, findings: Findings) -> Polygons:
    if len(polygons.parts) < len(raw):
        sentence = "parts with fewer than three points are left out; the other parts are used."
        findings.warn("short-part", sentence, f"{name} ({len(raw) - len(polygons.parts)} of {len(raw)} parts)")
    return polygons


def _fingerprint(annotation: Annotation) -> Any:
    segmentation = annotation.segmentation
    if isinstance(segmentation, Rle):
        content: Any = hash(segmentation.runs.tobytes())
    else:
        content = hash(tuple(part.tobytes() for part in segmentation.parts))
    return annotation.image_id, annotation.category_idx, annotation.is_crowd, content
