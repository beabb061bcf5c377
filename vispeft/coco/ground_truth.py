"""COCO annotation file prepared for pycocotools: unchanged, with only missing fields filled in.

Scoring reads no images and drops nothing that pycocotools can score. Every change is reported as a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from vispeft.coco.faults import Faults
from vispeft.coco.foreign_formats import PANOPTIC, foreign_format_hint, is_panoptic
from vispeft.coco.polygon_batch import polygon_rles
from vispeft.coco.rle import LARGEST_MASK, size_of, to_rle
from vispeft.coco.segmentation_forms import SENTENCES, holds_relative, normalise_segmentation
from vispeft.coco.values import (
    LARGEST_ID,
    as_box,
    as_flag,
    as_integer,
    flag_of_text,
    is_number,
    new_ids,
    sides_of,
    why_no_id,
)
from vispeft.errors import DataError
from vispeft.io.garbage import paused_collection
from vispeft.io.json_files import read_json

_NUMBERS = frozenset((int, float))


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth that results are scored against.

    images, categories: as in the file, with ids and sides as integers
    annotations: with `id`, `area`, `bbox` and `iscrowd` all there
    rles: each annotation's mask as pycocotools reads it, compressed; None where it cannot take part in the mask pass
    warnings: one sentence per kind of change
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    rles: tuple[dict[str, Any] | None, ...]
    warnings: tuple[str, ...]

    @property
    def image_sizes(self) -> dict[int, tuple[int, int]]:
        """Return the height and width of every image by its id."""
        return {image["id"]: (image["height"], image["width"]) for image in self.images}

    @property
    def category_names(self) -> dict[int, str]:
        """Return the name of every category by its id; the id is added to a name that several categories share."""
        names = {category["id"]: str(category.get("name", category["id"])) for category in self.categories}
        uses = Counter(names.values())
        return {key: name if uses[name] == 1 else f"{name} (id {key})" for key, name in names.items()}


@paused_collection()
def read_ground_truth(annotations: Path | dict[str, Any]) -> GroundTruth:
    """Return the annotations of a COCO instances file, or of its content (left unchanged), to score against."""
    source = f"`{annotations}`" if isinstance(annotations, Path) else "the annotations"
    document = read_json(annotations) if isinstance(annotations, Path) else annotations
    faults = Faults(source)
    images, categories, entries = _checked_lists(document, source, faults)
    truth = GroundTruth(images, categories, [], (), ())
    sizes, category_ids = truth.image_sizes, {category["id"] for category in categories}
    is_relative = holds_relative(entry.get("segmentation") for entry in entries if isinstance(entry, dict))
    known = {} if is_relative else _polygon_rles(entries, sizes)
    filled: list[dict[str, Any]] = []
    rles: list[dict[str, Any] | None] = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            faults.warn("no object; not scored", f"[{place}]")
            continue
        rle = known.get(place)
        if rle is not None and _is_complete(entry, sizes, category_ids):
            filled.append(entry.copy())
            rles.append(rle)
            continue
        name = _name(entry, place)
        annotation = _with_known_ids(entry, name, sizes, category_ids, faults)
        if rle is None:
            rle = _annotation_rle(annotation, sizes.get(annotation["image_id"]), name, is_relative, faults)
        if annotation["image_id"] in sizes and _fill(annotation, rle, name, faults):
            filled.append(annotation)
            rles.append(rle)
    faults.raise_if_refused()
    warnings = [*_shared_names(categories), *faults.warnings(), *_renumber(filled, source)]
    return GroundTruth(images, categories, filled, tuple(rles), tuple(warnings))


def _is_complete(entry: dict[str, Any], sizes: Container[int], category_ids: Container[int]) -> bool:
    """Return True for an annotation with all fields as they should be, apart from its mask: nearly all are."""
    box: Any
    area: Any
    ids: tuple[Any, ...] = entry.get("id"), entry.get("image_id"), entry.get("category_id")
    box, area, crowd = entry.get("bbox"), entry.get("area"), entry.get("iscrowd")
    if not isinstance(box, list) or len(box) != 4 or not _NUMBERS.issuperset(map(type, (*box, area))):
        return False
    x, y, width, height = box
    return (
        {*map(type, ids), type(crowd)} == {int}
        and -LARGEST_ID <= ids[0] <= LARGEST_ID
        and ids[1] in sizes
        and ids[2] in category_ids
        and (crowd == 0 or crowd == 1)
        and -LARGEST_ID < x < LARGEST_ID
        and -LARGEST_ID < y < LARGEST_ID
        and 0 <= width < LARGEST_ID
        and 0 <= height < LARGEST_ID
        and -LARGEST_ID < area < LARGEST_ID
    )


def _name(entry: dict[str, Any], place: int) -> str:
    identifier = as_integer(entry.get("id"))
    return f"[{place}]" if identifier is None else str(identifier)


def _checked_lists(
    document: Any, source: str, faults: Faults
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Any]]:
    """Return images and categories with integer ids, and the annotations of a COCO document, or raise a DataError."""
    hint = f"; {hint}" if (hint := foreign_format_hint(document)) else ""
    if not isinstance(document, dict) or hint:
        raise DataError(f"{source} must hold an object with images, annotations and categories{hint}.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            given = "an object in its place" if isinstance(document.get(key), dict) else "none"
            raise DataError(f"{source} must have a list `{key}`, but has {given}. Results cannot be scored without it.")
    entries = document["annotations"]
    if is_panoptic(entries):
        raise DataError(f"{source} {PANOPTIC}.")
    for key in ("images", "categories"):
        if not document[key]:
            raise DataError(f"{source} lists no {key} (`{key}` is empty).")
    images = _with_ids(document["images"], "images", ("file_name", "height", "width"), faults)
    categories = _with_ids(document["categories"], "categories", ("name",), faults)
    return [_with_sides(image, faults) for image in images], categories, entries


def _with_ids(items: Iterable[Any], key: str, same: Sequence[str], faults: Faults) -> list[dict[str, Any]]:
    """Return the items that have a unique integer `id`; the others are refused, except for an entry given twice."""
    found: dict[int, dict[str, Any]] = {}
    for place, item in enumerate(items):
        item_id = item.get("id") if isinstance(item, dict) else None
        identifier = as_integer(item_id)
        if identifier is None:
            name = f"{key}[{place}] (id {item_id!r:.60})"
            what = f"an `id` that {why_no_id(item_id)}; ids must be integers"
            faults.refuse("entry", what, name, is_mendable=isinstance(item_id, str))
        elif identifier not in found:
            found[identifier] = {**item, "id": identifier}
        elif any(item.get(name) != found[identifier].get(name) for name in same):
            faults.refuse("entry", "an id that stands for two entries", f"{key}[{place}] (id {identifier})")
    return list(found.values())


def _with_sides(image: dict[str, Any], faults: Faults) -> dict[str, Any]:
    """Return an image with a positive integer `height` and `width`; one without them is refused."""
    sides = sides_of(image)
    if sides is None or sides[0] * sides[1] > LARGEST_MASK:
        faults.refuse("image", "no positive integer `height` and `width`", str(image["id"]), is_mendable=True)
        sides = (0, 0)
    return {**image, "height": sides[0], "width": sides[1]}


def _with_known_ids(
    entry: dict[str, Any], name: str, sizes: Container[int], category_ids: Container[int], faults: Faults
) -> dict[str, Any]:
    """Return a copy of one annotation with integer ids. Wrong ids are refused; an unknown image gives a warning."""
    annotation = {**entry, "id": as_integer(entry.get("id"))}
    for key in ("image_id", "category_id"):
        value = entry.get(key)
        annotation[key] = identifier = as_integer(value)
        if identifier is None:
            subject = name if value is None else f"{name} ({key} {value!r:.60})"
            what = f"no integer `{key}`: it {why_no_id(value)}"
            faults.refuse("annotation", what, subject, is_mendable=isinstance(value, str))
    if annotation["category_id"] is not None and annotation["category_id"] not in category_ids:
        faults.refuse("annotation", f"category_id {annotation['category_id']}, which is not in `categories`", name)
    if annotation["image_id"] is not None and annotation["image_id"] not in sizes:
        faults.warn("of an image that the file does not list; not scored", name)
    return annotation


def _polygon_rles(entries: Sequence[Any], sizes: Mapping[int, tuple[int, int]]) -> dict[int, dict[str, Any]]:
    """Return the masks of the annotations that are plain polygons, by place. sizes: image id to height and width"""
    plain = [entry if isinstance(entry, dict) else {} for entry in entries]
    known = [sizes.get(key) if isinstance(key := entry.get("image_id"), int) else None for entry in plain]
    whole = [size if size and 0 not in size else None for size in known]
    return polygon_rles([entry.get("segmentation") for entry in plain], whole)


def _annotation_rle(
    annotation: dict[str, Any], size: tuple[int, int] | None, name: str, is_relative: bool, faults: Faults
) -> dict[str, Any] | None:
    """Return the mask of an annotation as pycocotools reads it, or None if it has no readable mask."""
    straight = normalise_segmentation(annotation.get("segmentation"))
    is_scaled = is_relative and isinstance(straight.value, list) and bool(straight.value)
    for form in (*straight.forms, *(["relative-coordinates"] if is_scaled else [])):
        faults.refuse("annotation", f"a wrong form: {SENTENCES[form]}", name, is_mendable=True)
    segmentation = straight.value
    if size is None or is_scaled or straight.forms or 0 in size:
        return None
    if not segmentation:
        faults.warn("without segmentation; left out of the mask pass", name)
        return None
    if isinstance(segmentation, list) and [] in segmentation and any(segmentation):
        faults.warn("with an empty polygon; the other polygons are scored", name)
        segmentation = [polygon for polygon in segmentation if polygon != []]
    try:
        if isinstance(segmentation, dict) and segmentation.get("size") != list(size):
            return _misfit(segmentation, size, name, faults)
        rle = to_rle(segmentation, *size)
    except ValueError as error:
        faults.warn(f"{error}; left out of the mask pass", name)
        return None
    if isinstance(segmentation, list) and any(len(polygon) < 6 for polygon in segmentation):
        faults.warn("with a polygon of fewer than three points, scored as pycocotools reads it", name)
    return rle


def _misfit(rle: dict[str, Any], size: tuple[int, int], name: str, faults: Faults) -> dict[str, Any]:
    """Return an RLE of another size than its image: it matches nothing in pycocotools and is a false negative."""
    height, width = size_of(rle)
    compressed = to_rle(rle, height, width)
    shapes = f"{height}x{width} for an image of {size[0]}x{size[1]} (height x width)"
    turned = " (are height and width exchanged?)" if size == (width, height) else ""
    faults.warn(f"with an RLE of size {shapes}; it cannot match a result and counts as not found{turned}", name)
    return compressed


def _fill(annotation: dict[str, Any], rle: dict[str, Any] | None, name: str, faults: Faults) -> bool:
    """Add `area`, `bbox` and `iscrowd` where they are missing. Return False if they cannot be derived."""
    bbox, area, crowd = annotation.get("bbox"), annotation.get("area"), annotation.get("iscrowd")
    has_box, is_crowd = as_box(bbox) is not None, as_flag(crowd)
    if is_crowd is None:
        if flag_of_text(crowd) is not None:
            faults.refuse("annotation", "an `iscrowd` that is text", name, is_mendable=True)
        else:
            faults.warn("with an `iscrowd` that is neither 0 nor 1; not scored", name)
        return False
    if not has_box and rle is None:
        faults.warn("with neither a box nor a mask; not scored", name)
        return False
    if not has_box:
        if bbox:
            faults.warn("with a `bbox` that is not a box; it is taken from the mask", name)
        annotation["bbox"] = mask_utils.toBbox(rle).tolist()
    if not is_number(area):
        if area is not None:
            faults.warn("with an `area` that is not a number; it is taken from the mask, or else the box", name)
        box = annotation["bbox"]
        annotation["area"] = box[2] * box[3] if rle is None else float(mask_utils.area(rle))
    annotation["iscrowd"] = int(is_crowd)
    return True


def _shared_names(categories: Sequence[dict[str, Any]]) -> list[str]:
    """Return a warning for every name that several categories share."""
    uses = Counter(str(category.get("name")) for category in categories)
    return [
        f"{count} categories are called {name}; they are scored apart, and told apart by their ids."
        for name, count in uses.items()
        if count > 1
    ]


def _renumber(annotations: Sequence[dict[str, Any]], source: str) -> list[str]:
    """Give annotations without an id, with id 0, or with the id of an earlier one, ids of their own, in place.

    pycocotools marks "not matched" with 0, and of two annotations with one id it scores the last one twice. Returns
    the warnings.
    """
    free = new_ids({annotation["id"] for annotation in annotations if annotation["id"] is not None})
    seen: set[int] = set()
    faults = Faults(source)
    for place, annotation in enumerate(annotations):
        annotation_id = annotation["id"]
        if annotation_id is None:
            faults.warn("without an integer `id`; given new ones", f"[{place}]")
        elif annotation_id == 0 or annotation_id in seen:
            what = "with id 0" if annotation_id == 0 else "with an id that is used twice"
            faults.warn(f"{what}, which pycocotools cannot score; renumbered", str(annotation_id))
        if not annotation_id or annotation_id in seen:
            annotation["id"] = next(free)
        seen.add(annotation["id"])
    return faults.warnings()
