"""Builder of a COCO file, image by image, and helpers that the converters share."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vispeft.coco.problems import CheckReport, Findings, Problem, show
from vispeft.coco.segmentation import Polygons, clip_polygon, encode_segmentation
from vispeft.coco.sets import segmentation_to_json
from vispeft.data.reading.folder_scan import has_picture_ending
from vispeft.data.reading.images import ImageHeader, quiet, read_header
from vispeft.errors import DataError
from vispeft.io.json_files import write_json


@dataclass
class Builder:
    """Images, instances and problems of a COCO file. Category ids count from 1 in the order of `names`."""

    names: list[str]
    findings: Findings = field(default_factory=Findings)
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add_image(self, path: Path, root: Path) -> ImageHeader | None:
        """Add an image file by its path relative to `root`. Report an unreadable file and return None for it."""
        try:
            with quiet():
                header = read_header(path)
        except DataError as error:
            self.findings.warn("unreadable-image", "left out with its annotations.", str(error).removesuffix("."))
            return None
        file_name = path.relative_to(root).as_posix()
        entry = {"id": len(self.images) + 1, "file_name": file_name, "height": header.height, "width": header.width}
        self.images.append(entry)
        return header

    def add_polygons(self, category_idx: int, parts: Sequence[NDArray[np.float64]], subject: str) -> None:
        """Add one instance of the latest image, cut at its edges. parts: polygons, each [P, 2] x, y in pixels."""
        height, width = self.images[-1]["height"], self.images[-1]["width"]
        cut = [clip_polygon(points, (0, 0), (width, height)) for points in parts]
        inside = Polygons(tuple(points for points in cut if len(points) >= 3))
        rle = encode_segmentation(inside, height, width)
        self._add(category_idx, segmentation_to_json(inside, height, width), rle, subject)

    def add_mask(self, category_idx: int, mask: NDArray[np.bool_], subject: str) -> None:
        """Add one instance of the latest image by its dense mask, [height, width]."""
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        self._add(category_idx, {"size": rle["size"], "counts": rle["counts"].decode("ascii")}, rle, subject)

    def _add(self, category_idx: int, segmentation: Any, rle: Any, subject: str) -> None:
        area = float(coco_mask.area(rle))
        if area == 0:
            self.findings.warn("no-pixel", "covers no pixel of its image; left out.", subject)
            return
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": self.images[-1]["id"],
                "category_id": category_idx + 1,
                "segmentation": segmentation,
                "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                "area": area,
                "iscrowd": 0,
            }
        )

    def write(self, out: Path, source: Path) -> tuple[Problem, ...]:
        """Write the COCO file and return the warnings, or raise one `DataError` that lists all refusals."""
        if not self.findings.is_refused and not self.images:
            self.findings.refuse("no-image", "contains no image to convert.", "")
        elif not self.findings.is_refused and not self.annotations:
            self.findings.refuse("no-instance", "contains no instance to convert.", "")
        problems = self.findings.problems()
        CheckReport(source, problems).raise_if_refused()
        categories = [{"id": idx + 1, "name": name} for idx, name in enumerate(self.names)]
        document = {"images": self.images, "categories": categories, "annotations": self.annotations}
        write_json(out, document, raises=DataError)
        return problems


def checked_names(names: Sequence[Any], source: str) -> list[str]:
    """Return class names as text, in order. Raises `DataError` for no name, an empty name, or a duplicate."""
    texts = [str(name).strip() for name in names]
    duplicates = [name for name, count in Counter(texts).items() if count > 1]
    if not texts or not all(texts) or duplicates:
        reason = f"{show(duplicates[0])} occurs twice" if duplicates else "one is empty" if texts else "there is none"
        raise DataError(f"{source}: every class must have a unique name, but {reason}.")
    return texts


def key_of(path: Path, root: Path) -> str:
    """Return the key by which an image and its annotations match: the path below `root` without an image extension."""
    relative = path.relative_to(root).as_posix()
    return composed(relative[: -len(path.suffix)] if has_picture_ending(path) else relative)


def composed(text: str) -> str:
    """Return a name in Unicode form NFC: macOS writes file names with decomposed accents."""
    return unicodedata.normalize("NFC", text)


def some(names: Sequence[str]) -> str:
    """Return the first names of a list and the count of the others, as text."""
    listed = ", ".join(show(name) for name in names[:3])
    return f"{listed} and {len(names) - 3} more" if len(names) > 3 else listed
