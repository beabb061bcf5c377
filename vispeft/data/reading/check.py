"""Report of all problems of a data set at once, and a repaired copy of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vispeft.coco.identifiers import with_integer_ids
from vispeft.coco.problems import CheckReport, Findings
from vispeft.coco.sets import CocoSet, all_annotations, to_annotations
from vispeft.coco.values import as_integer
from vispeft.data.reading.channels import RGB
from vispeft.data.reading.coco import examine, load_document
from vispeft.data.reading.crowded import crowded_problems
from vispeft.data.reading.image_files import Headers
from vispeft.errors import DataError, writing
from vispeft.io.json_files import write_json


def check_dataset(
    annotations: Path, images: Path | None, *, num_channels: int = RGB, boxes_alone: bool = False
) -> CheckReport:
    """Report all problems of a COCO instance file and its images.

    boxes_alone: for detection: the boxes count, and masks are ignored

    `refused`: training would not start on it. `is_fixable`: `write_fixed` makes a copy on which it would.
    """
    headers: Headers = {}
    read = partial(
        examine,
        annotations,
        images,
        check_images=True,
        headers=headers,
        num_channels=num_channels,
        boxes_alone=boxes_alone,
    )
    coco_set, report = read()
    if coco_set is not None:
        return replace(report, problems=report.problems + crowded_problems(coco_set))
    return replace(report, repaired=read(repair=True)[1])


def write_fixed(
    annotations: Path, images: Path | None, out: Path, *, num_channels: int = RGB, boxes_alone: bool = False
) -> CheckReport:
    """Write a repaired copy of a COCO instance file and return the report of entries left out or corrected.

    Bad annotations and images are left out; known wrong forms of `segmentation` are rewritten; missing `bbox`, `area`,
    `iscrowd`, `height` and `width` are filled in; ids that are missing, doubled, text or below 1 become new ones;
    categories of the same name get their id added to it, or go where no annotation uses them; a `file_name` that is not
    there is replaced where only one file can be meant.
    boxes_alone: for detection: the boxes count, and `segmentation` stays as it is
    Raises `DataError` where a correction would be a guess.
    """
    with writing(out, DataError):
        is_same = out.exists() and out.samefile(annotations)
    if is_same:
        raise DataError(f"{out} is the file to repair; name another one for the repaired copy.")
    coco_set, report = examine(
        annotations, images, check_images=True, repair=True, num_channels=num_channels, boxes_alone=boxes_alone
    )
    report.raise_if_refused()
    if coco_set is None:
        raise DataError(f"{annotations} cannot be repaired.")
    write_json(out, with_extras(coco_set, boxes_alone=boxes_alone), raises=DataError, allow_nan=True)
    return report


def with_extras(coco_set: CocoSet, *, boxes_alone: bool = False) -> dict[str, Any]:
    """Return the COCO dictionary of a set, with `info`, `licenses` and further keys of its file.

    boxes_alone: the set was read for detection, so that `segmentation`, too, is the file's own
    """
    findings = Findings(is_repairing=True)
    document = load_document(coco_set.annotations_path, findings)
    if document is None:
        raise DataError(f"{coco_set.annotations_path} changed while it was read; start again.")
    # the ids that text became, as `examine` gave them
    document = with_integer_ids(document, findings)
    result = to_annotations(coco_set)
    for entry in result["annotations"] if boxes_alone else ():
        del entry["segmentation"]
    for key in ("images", "categories"):
        extras = {as_integer(entry.get("id")): entry for entry in document[key] if isinstance(entry, dict)}
        result[key] = [{**extras.get(entry["id"], {}), **entry} for entry in result[key]]
    places = {a.id: a.place for a in all_annotations(coco_set.annotations, coco_set.crowds)}
    result["annotations"] = [{**document["annotations"][places[a["id"]]], **a} for a in result["annotations"]]
    return {**{key: document[key] for key in ("info", "licenses") if key in document}, **result}
