"""Reader of COCO files for detection: boxes alone count, masks are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vispeft.coco.annotation_boxes import trained_box
from vispeft.coco.problems import Findings
from vispeft.coco.sets import CocoSet
from vispeft.coco.values import as_number
from vispeft.data.reading.channels import RGB
from vispeft.data.reading.coco import examine_document, load_document, usable


def read_boxes(annotations: Path, images: Path | None, *, num_channels: int = RGB) -> CocoSet:
    """Read a COCO file by its boxes: every annotation has the rectangle of its `bbox` in the place of a mask.

    Annotations without a valid box, with a mask or not, are left out with a warning. The arguments are those of
    `read_coco`.

    Raises one `DataError` that lists all reasons why the file cannot be used.
    """
    findings = Findings()
    document = load_document(annotations, findings)
    if document is not None:
        items = [_with_rectangle(item, place, findings) for place, item in enumerate(document["annotations"])]
        document = {**document, "annotations": [item for item in items if item is not None]}
    return usable(
        *examine_document(
            document, annotations, images, findings, check_images=True, headers={}, num_channels=num_channels
        )
    )


def _with_rectangle(item: Any, place: int, findings: Findings) -> Any:
    """Return an annotation with its box as its segmentation; None without a valid box."""
    if not isinstance(item, Mapping):
        return item
    box = trained_box(item.get("bbox"))
    if box is None:
        sentence = "`bbox` must be x, y, width, height with sides above 0; left out, for a box is never invented."
        findings.warn("no-bbox", sentence, f"annotations[{place}] (id {item.get('id')!r:.40})")
        return None
    left, top, width, height = box
    right, bottom = left + width, top + height
    corners = [left, top, right, top, right, bottom, left, bottom]
    area = item.get("area") if as_number(item.get("area")) else width * height
    return {**item, "segmentation": [corners], "area": area}
