"""Reader of COCO files for detection: boxes alone count, masks are ignored."""

from __future__ import annotations

from pathlib import Path

from vispeft.coco.sets import CocoSet
from vispeft.data.reading.channels import RGB
from vispeft.data.reading.coco import examine, usable


def read_boxes(
    annotations: Path, images: Path | None, *, check_images: bool = True, num_channels: int = RGB
) -> CocoSet:
    """Read a COCO file by its boxes: every annotation has the rectangle of its `bbox` in the place of a mask.

    Annotations without a valid box, with a mask or not, are left out with a warning. The arguments are those of
    `read_coco`.

    Raises one `DataError` that lists all reasons why the file cannot be used.
    """
    return usable(*examine(annotations, images, check_images=check_images, num_channels=num_channels, boxes_alone=True))
