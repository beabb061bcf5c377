"""A COCO annotation file made ready for pycocotools: as it stands, with only what is missing filled in.

Scoring reads no images and drops nothing that pycocotools can score. Whatever is done here becomes a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from vispeft.errors import DataError
from vispeft.evaluation.files import read_json
from vispeft.evaluation.results import is_box
from vispeft.evaluation.rle import check_counts, is_integer, is_number, to_rle


@dataclass(frozen=True)
class GroundTruth:
    """What results are scored against.

    images, categories: as in the file
    annotations: with `id`, `area`, `bbox` and `iscrowd` all there
    rles: each annotation's mask as pycocotools reads it, compressed; None where it cannot take part in the mask pass
    warnings: one sentence per kind of thing that was done
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    rles: tuple[dict[str, Any] | None, ...]
    warnings: tuple[str, ...]

    @property
    def image_sizes(self) -> dict[int, tuple[int, int]]:
        """Height and width of every image by its id."""
        return {image["id"]: (image["height"], image["width"]) for image in self.images}

    @property
    def category_names(self) -> dict[int, str]:
        """Name of every category by its id; a name that several categories share is told apart by the id."""
        names = {category["id"]: str(category.get("name", category["id"])) for category in self.categories}
        uses = Counter(names.values())
        return {key: name if uses[name] == 1 else f"{name} (id {key})" for key, name in names.items()}


def read_ground_truth(annotations: Path | dict[str, Any]) -> GroundTruth:
    """Annotations to score against, from a COCO instances file or from what such a file holds (left unchanged)."""
    source = f"`{annotations}`" if isinstance(annotations, Path) else "the annotations"
    document = read_json(annotations) if isinstance(annotations, Path) else annotations
    images, categories, entries = _checked_lists(document, source)
    truth = GroundTruth(images, categories, [], (), ())
    sizes, category_ids = truth.image_sizes, {category["id"] for category in categories}
    log = _Log({})
    filled: list[dict[str, Any]] = []
    rles: list[dict[str, Any] | None] = []
    for entry in entries:
        annotation = _checked_annotation(entry, source, category_ids)
        if annotation["image_id"] not in sizes:
            log.add("of an image that the file does not list; not scored", annotation["id"])
            continue
        rle = _annotation_rle(annotation, sizes[annotation["image_id"]], log)
        if not _fill(annotation, rle, log):
            continue
        filled.append(annotation)
        rles.append(rle)
    warnings = [*_shared_names(categories), *log.sentences(), *_renumber(filled)]
    return GroundTruth(images, categories, filled, tuple(rles), tuple(warnings))


@dataclass(frozen=True)
class _Log:
    """Annotation ids by what has to be said of them."""

    ids: dict[str, list[int]]

    def add(self, what: str, annotation_id: int) -> None:
        """Note one annotation."""
        self.ids.setdefault(what, []).append(annotation_id)

    def sentences(self) -> list[str]:
        """One sentence per kind, with the first ids."""
        return [f"{_listed(ids)}: {what}." for what, ids in self.ids.items()]


def _listed(ids: Sequence[int]) -> str:
    """ "Annotations 3, 4" with at most five ids, and how many there are in all if there are more."""
    first = ", ".join(str(annotation_id) for annotation_id in ids[:5])
    if len(ids) > 5:
        return f"Annotations {first}, ... ({len(ids)} in all)"
    return f"Annotation{'s' if len(ids) > 1 else ''} {first}"


def _checked_lists(document: Any, source: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Any]]:
    """Images, categories and annotations of a COCO document, or a DataError."""
    if not isinstance(document, dict):
        hint = " It looks like a results file." if isinstance(document, list) else ""
        raise DataError(f"{source} must hold an object with images, annotations and categories.{hint}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise DataError(f"{source} must have a list `{key}`, but has none. Results cannot be scored without it.")
    images, categories, entries = document["images"], document["categories"], document["annotations"]
    if entries and isinstance(entries[0], dict) and "segments_info" in entries[0]:
        raise DataError(f"{source} is in COCO's panoptic form (`segments_info`); give the instances file instead.")
    for key, items in (("images", images), ("categories", categories)):
        if not items:
            raise DataError(f"{source} lists no {key} (`{key}` is empty).")
        _check_ids(items, key, source)
    for image in images:
        sides = [image.get("height"), image.get("width")]
        if not all(is_integer(side) and side > 0 for side in sides) or sides[0] * sides[1] >= 2**32:
            raise DataError(
                f"{source}: image {image['id']} must have a positive integer `height` and `width`, but has {sides}."
            )
    return images, categories, entries


def _check_ids(items: Iterable[Any], key: str, source: str) -> None:
    """Raise a DataError unless every item is an object with an integer `id` of its own."""
    seen: set[int] = set()
    for idx, item in enumerate(items):
        item_id: Any = item.get("id") if isinstance(item, dict) else None
        if not is_integer(item_id):
            raise DataError(f"{source}: entry {idx} of `{key}` has id {item_id!r:.80}, but ids must be integers.")
        if item_id in seen:
            raise DataError(f"{source}: id {item_id} stands for two entries of `{key}`. Give each an id of its own.")
        seen.add(item_id)


def _checked_annotation(entry: Any, source: str, category_ids: set[int]) -> dict[str, Any]:
    """A copy of one annotation whose ids can be relied on."""
    for key in ("id", "image_id", "category_id"):
        if not isinstance(entry, dict) or not is_integer(entry.get(key)):
            raise DataError(f"{source}: every annotation must have an integer `{key}`, but one is {entry!r:.120}.")
    if entry["category_id"] not in category_ids:
        raise DataError(
            f"{source}: annotation {entry['id']} has category_id {entry['category_id']}, which is not in `categories`."
        )
    return dict(entry)


def _annotation_rle(annotation: dict[str, Any], size: tuple[int, int], log: _Log) -> dict[str, Any] | None:
    """The mask of an annotation as pycocotools reads it, or None if it has none that could be read."""
    segmentation, annotation_id = annotation.get("segmentation"), annotation["id"]
    if not segmentation:
        log.add("without segmentation; left out of the mask pass", annotation_id)
        return None
    try:
        if isinstance(segmentation, dict) and segmentation.get("size") != list(size):
            return _misfit(segmentation, size, annotation_id, log)
        rle = to_rle(segmentation, *size)
    except ValueError as error:
        log.add(f"{error}; left out of the mask pass", annotation_id)
        return None
    if isinstance(segmentation, list) and any(len(polygon) < 6 for polygon in segmentation):
        log.add("with a polygon of fewer than three points, scored as pycocotools reads it", annotation_id)
    return rle


def _misfit(rle: dict[str, Any], size: tuple[int, int], annotation_id: int, log: _Log) -> dict[str, Any]:
    """An RLE of another size than its image: pycocotools lets it match nothing, so it counts as missed."""
    sides = rle.get("size")
    if not isinstance(sides, list) or len(sides) != 2 or not all(is_integer(side) and side > 0 for side in sides):
        raise ValueError("with an RLE that has no `size` [height, width]")
    check_counts(rle.get("counts"), sides[0] * sides[1])
    shapes = f"{sides[0]}x{sides[1]} for an image of {size[0]}x{size[1]} (height x width)"
    log.add(f"with an RLE of size {shapes}; it can only be missed", annotation_id)
    return to_rle(rle, *sides)


def _fill(annotation: dict[str, Any], rle: dict[str, Any] | None, log: _Log) -> bool:
    """Add `area`, `bbox` and `iscrowd` where they are missing. False if there is nothing to take them from."""
    bbox, area, is_crowd = annotation.get("bbox"), annotation.get("area"), annotation.get("iscrowd")
    has_box = is_box(bbox)
    if is_crowd not in (0, 1, None):
        log.add("with an `iscrowd` that is neither 0 nor 1; not scored", annotation["id"])
        return False
    if not has_box and rle is None:
        log.add("with neither a box nor a mask; not scored", annotation["id"])
        return False
    if not has_box:
        if bbox:
            log.add("with a `bbox` that is not a box; it is taken from the mask", annotation["id"])
        annotation["bbox"] = mask_utils.toBbox(rle).tolist()
    if not is_number(area):
        if area is not None:
            log.add("with an `area` that is not a number; it is taken from the mask, or else the box", annotation["id"])
        box = annotation["bbox"]
        annotation["area"] = box[2] * box[3] if rle is None else float(mask_utils.area(rle))
    annotation["iscrowd"] = int(bool(is_crowd))
    return True


def _shared_names(categories: Sequence[dict[str, Any]]) -> list[str]:
    """A warning for every name that stands for several categories."""
    uses = Counter(str(category.get("name")) for category in categories)
    return [
        f"{count} categories are called {name}; they are scored apart, and told apart by their ids."
        for name, count in uses.items()
        if count > 1
    ]


def _renumber(annotations: Sequence[dict[str, Any]]) -> list[str]:
    """Give annotations with id 0, or with the id of an earlier one, ids of their own, in place; says so.

    pycocotools marks "not matched" with 0, and of two annotations with one id it scores the last one twice.
    """
    highest = max((annotation["id"] for annotation in annotations), default=0)
    seen: set[int] = set()
    log = _Log({})
    for annotation in annotations:
        annotation_id = annotation["id"]
        if annotation_id == 0 or annotation_id in seen:
            highest = max(highest, 0) + 1
            annotation["id"] = highest
            what = "with id 0" if annotation_id == 0 else "with an id that is used twice"
            log.add(f"{what}, which pycocotools cannot score; renumbered", annotation_id)
        seen.add(annotation["id"])
    return log.sentences()
