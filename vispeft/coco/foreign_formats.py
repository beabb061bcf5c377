"""Recognition of JSON files in formats of other tools by their keys."""

from __future__ import annotations

from typing import Any

PANOPTIC = "is in COCO's panoptic form (`segments_info`); give the instance file, or set `task: panoptic`"

_OF_OBJECTS = (
    (("shapes", "imagePath"), "this is a LabelMe file, so use `vispeft data convert labelme`"),
    (("_via_img_metadata",), "this is a VIA project, so export its annotations in COCO format"),
    (("info", "objects"), "this is an ISAT file of one image, so export COCO from there"),
)
_OF_LISTS = (
    (("score", "image_id"), "this looks like a COCO results file"),
    (("data", "annotations"), "this is Label Studio's own JSON, so export COCO from there, with images"),
    (("image", "annotations"), "this looks like a CreateML file, so export COCO from your tool"),
    (("id", "image_id", "category_id"), "this is the list `annotations` alone, so write the whole object"),
)


def foreign_format_hint(document: Any) -> str:
    """Return the format of a document that is no COCO instance file, and the remedy; empty where it is unknown."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict) or (first is document and {"images", "annotations"} <= first.keys()):
        return ""
    known = _OF_OBJECTS if first is document else _OF_LISTS
    return next((hint for keys, hint in known if first.keys() >= set(keys)), "")


def is_panoptic(annotations: list[Any]) -> bool:
    """Tell whether annotations are in COCO's panoptic form, by the first of them."""
    return bool(annotations) and isinstance(annotations[0], dict) and "segments_info" in annotations[0]
