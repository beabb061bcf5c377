"""Reader of sets for semantic segmentation: instance files, panoptic files, and folders of label maps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.foreign_formats import is_panoptic
from vispeft.coco.label_maps import VOID, mask_of, paint, runs_of_map
from vispeft.coco.problems import Findings, show
from vispeft.coco.segmentation import encode_segmentation, make_rle
from vispeft.coco.sets import Annotation, Category, CocoSet, Groups, ImageEntry
from vispeft.coco.values import as_integer, new_ids
from vispeft.data.reading.channels import RGB
from vispeft.data.reading.coco import examine_document, load_lists, usable
from vispeft.data.reading.panoptic import segments_folder, with_flat_segments
from vispeft.data.reading.segment_files import SegmentFile, fitting, is_inside_folder, read_labels
from vispeft.errors import DataError, reading

BACKGROUND = "background"
"""Class of the pixels that no annotation of an instance file covers."""

# values of label maps without a meaning, unless a category has that id
_UNLABELLED = (0, 255)


def read_semantic(
    annotations: Path,
    images: Path | None,
    segments: Path | None = None,
    *,
    num_channels: int = RGB,
) -> CocoSet:
    """Read a set whose annotations are one mask for each class in an image, none of them overlapping.

    Of an instance file, the union of a class's instances and crowd regions; where classes overlap, the annotation that
    the file lists first keeps the pixel, and what no annotation covers is the class `background`. Of a panoptic file,
    the union of a class's segments. Else `segments` is a folder of label maps, and the JSON file has images and
    categories alone: the map of `a/b.jpg` is `a/b.png`, its values are category ids, and 0 and 255 are unlabelled
    unless they are category ids. What the last two leave unlabelled is neither trained on nor scored.

    Raises one `DataError` that lists all reasons why the file cannot be used.
    """
    findings = Findings()
    keys = ("images", "categories", *(() if segments else ("annotations",)))
    document = load_lists(annotations, findings, keys)
    has_background = False
    if document is not None:
        listed = document.get("annotations") or []
        if not isinstance(listed, list):
            findings.refuse("bad-annotations", f"`annotations` must be a list, but is {show(listed)}.", "")
            document = None
        elif is_panoptic(listed):
            document = with_flat_segments(document, segments_folder(annotations, segments), findings)
        elif segments is not None:
            document = _with_label_maps(document, segments, findings)
        else:
            has_background = True
    found, report = examine_document(
        document, annotations, images, findings, check_images=True, headers={}, num_channels=num_channels
    )
    coco_set = usable(found, report)
    if has_background:
        coco_set = _with_background_class(coco_set)
    return merged_by_class(coco_set, BACKGROUND if has_background else None)


def merged_by_class(coco_set: CocoSet, background: str | None) -> CocoSet:
    """Return the set with one annotation for each class in an image, and without crowd regions.

    background: class of the pixels without an annotation; None: they stay unlabelled
    """
    rest = VOID if background is None else coco_set.class_names.index(background) + 1
    ids = itertools.count(1)
    groups = []
    for entry, instances, crowds in zip(coco_set.images, coco_set.annotations, coco_set.crowds, strict=True):
        values = _label_map(entry, (*instances, *crowds))
        values[values == VOID] = rest
        groups.append(tuple(_annotations(entry, values, ids)))
    nothing = Groups(() for _ in coco_set.images)
    return replace(coco_set, annotations=Groups(groups), crowds=nothing)


def _label_map(entry: ImageEntry, annotations: tuple[Annotation, ...]) -> NDArray[np.int64]:
    """Return the class index plus one of every pixel, [height, width]; the first annotation keeps a pixel."""
    values = np.full((entry.height, entry.width), VOID, np.int64)
    for annotation in annotations:
        rle = encode_segmentation(annotation.segmentation, entry.height, entry.width)
        paint(values, mask_of(rle), annotation.category_idx + 1)
    return values


def _annotations(entry: ImageEntry, values: NDArray[np.int64], ids: Iterator[int]) -> Iterator[Annotation]:
    """Yield one annotation for each class of a label map."""
    for value, runs in runs_of_map(values).items():
        segmentation = make_rle(runs, entry.height, entry.width)
        rle = encode_segmentation(segmentation, entry.height, entry.width)
        x, y, width, height = (float(number) for number in mask_utils.toBbox(rle))
        area = float(mask_utils.area(rle))
        yield Annotation(next(ids), entry.id, value - 1, False, segmentation, (x, y, width, height), area)


def _with_background_class(coco_set: CocoSet) -> CocoSet:
    """Return the set with a class for the pixels that no annotation covers, unless it has one of that name."""
    if BACKGROUND in coco_set.class_names:
        return coco_set
    used = set(coco_set.category_ids)
    added = Category(0 if 0 not in used else next(new_ids(used)), BACKGROUND)
    # ids are sorted, and class indices are places
    is_first = all(added.id < identifier for identifier in used)
    categories = (added, *coco_set.categories) if is_first else (*coco_set.categories, added)
    if not is_first:
        return replace(coco_set, categories=categories)

    def moved(groups: Groups) -> Groups:
        return Groups(tuple(replace(a, category_idx=a.category_idx + 1) for a in group) for group in groups)

    return replace(
        coco_set, categories=categories, annotations=moved(coco_set.annotations), crowds=moved(coco_set.crowds)
    )


def _with_label_maps(document: dict[str, Any], folder: Path, findings: Findings) -> dict[str, Any] | None:
    """Return a document of images and categories in the form of an instance file, by the label maps of its images."""
    with reading(folder, DataError):
        is_there = folder.is_dir()
    if not is_there:
        findings.refuse("no-segments-folder", f"the folder of label maps, {folder}, does not exist (`segments`).", "")
        return None
    named = [
        (entry, folder / Path(entry["file_name"]).with_suffix(".png"))
        for entry in document["images"]
        if isinstance(entry, dict)
        and isinstance(entry.get("file_name"), str)
        # an image of another name is refused with the images
        and is_inside_folder(entry["file_name"])
        and Path(entry["file_name"]).name
    ]
    files = read_labels(path for _, path in named)
    known = {as_integer(entry.get("id")) for entry in document["categories"] if isinstance(entry, dict)}
    flat: list[dict[str, Any]] = []
    ids = itertools.count(1)
    for entry, path in named:
        subject = f"image {show(entry.get('id'))}"
        file = fitting(path, files, entry, subject, findings)
        if file is not None:
            flat += _masks(entry, file, path, known, ids, findings)
    if not flat:
        findings.refuse("no-annotations", "no label map has a pixel of one of the categories.", "")
    return {**document, "annotations": flat}


def _masks(
    entry: dict[str, Any], file: SegmentFile, path: Path, known: set[int | None], ids: Iterator[int], findings: Findings
) -> Iterator[dict[str, Any]]:
    """Yield an entry of an instance file for each category of a label map."""
    for value in file.runs:
        if value in known:
            yield {
                "id": next(ids),
                "image_id": entry.get("id"),
                "category_id": value,
                "segmentation": file.rle(value),
            }
        elif value not in _UNLABELLED:
            sentence = "the label map has a value that is no category id."
            findings.refuse("unknown-label", sentence, f"{show(path.name)} (value {value})")
