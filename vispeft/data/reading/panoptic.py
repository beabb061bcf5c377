"""Reader of panoptic COCO files: a JSON file with `segments_info`, and a folder of PNG files of segment ids."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from vispeft.coco.foreign_formats import is_panoptic
from vispeft.coco.problems import Findings, show
from vispeft.coco.rle import compress
from vispeft.coco.sets import CocoSet
from vispeft.coco.values import as_flag, as_integer
from vispeft.data.reading.channels import RGB
from vispeft.data.reading.coco import examine_document, load_lists, usable
from vispeft.data.reading.segment_files import SegmentFile, fitting, is_inside_folder, read_segment_ids
from vispeft.errors import DataError, reading


def read_panoptic(
    annotations: Path,
    images: Path | None,
    segments: Path | None = None,
    *,
    num_channels: int = RGB,
) -> CocoSet:
    """Read a panoptic COCO file; its segments become annotations. Warnings are listed in `.report.warnings`.

    Segments of stuff classes are annotations like those of things, one for each class in an image. Segments with
    `iscrowd` are crowd regions.

    images: the folder that `file_name` is relative to; None where only the annotations matter
    segments: folder of the PNG files; None: the folder beside the JSON file, with its name

    Raises one `DataError` that lists all reasons why the file cannot be used.
    """
    findings = Findings()
    document = load_lists(annotations, findings)
    if document is not None and not is_panoptic(document["annotations"]):
        sentence = "holds no `segments_info`, so that it is no panoptic file (such as panoptic_val2017.json)."
        findings.refuse("no-segments-info", sentence, "")
        document = None
    flattened = (
        None if document is None else with_flat_segments(document, segments_folder(annotations, segments), findings)
    )
    found, report = examine_document(
        flattened, annotations, images, findings, check_images=True, headers={}, num_channels=num_channels
    )
    coco_set = usable(found, report)
    flags = {as_integer(entry.get("id")): bool(entry["isthing"]) for entry in (document or {})["categories"]}
    return replace(coco_set, categories=tuple(replace(kind, is_thing=flags[kind.id]) for kind in coco_set.categories))


def segments_folder(annotations: Path, segments: Path | None) -> Path:
    """Return the folder of the PNG files of a panoptic file; by default the one beside it with its name."""
    return segments or annotations.with_suffix("")


def with_flat_segments(document: dict[str, Any], folder: Path, findings: Findings) -> dict[str, Any] | None:
    """Return a panoptic document in the form of an instance file, an annotation for each segment.

    None where the folder is missing, which is refused
    """
    with reading(folder, DataError):
        is_there = folder.is_dir()
    if not is_there:
        findings.refuse(
            "no-segments-folder", f"the folder of its PNG files, {folder}, does not exist (`segments`).", ""
        )
        return None
    stuff = _stuff_ids(document["categories"], findings)
    named = [
        item for item in document["annotations"] if isinstance(item, dict) and isinstance(item.get("file_name"), str)
    ]
    files = read_segment_ids(folder / item["file_name"] for item in named if is_inside_folder(item["file_name"]))
    known = {as_integer(entry.get("id")) for entry in document["categories"] if isinstance(entry, dict)}
    images = {as_integer(entry.get("id")): entry for entry in document["images"] if isinstance(entry, dict)}
    flat: list[dict[str, Any]] = []
    ids = itertools.count(1)
    seen: set[int | None] = set()
    for place, item in enumerate(document["annotations"]):
        image_id = as_integer(item.get("image_id")) if isinstance(item, dict) else None
        subject = f"annotations[{place}] (image_id {show(image_id)})"
        if image_id not in images or image_id is None:
            findings.refuse("unknown-image", "its `image_id` is not among `images`.", subject)
        elif image_id in seen:
            findings.refuse("image-twice", "a second annotation of the same image; keep one of them.", subject)
        elif not isinstance(item.get("segments_info"), list) or not isinstance(item.get("file_name"), str):
            findings.refuse("bad-panoptic", "must have a list `segments_info` and a `file_name`.", subject)
        elif not is_inside_folder(item["file_name"]):
            findings.refuse("segments-outside", "its `file_name` leads out of the folder of PNG files.", subject)
        elif (file := fitting(folder / item["file_name"], files, images[image_id], subject, findings)) is not None:
            flat += _united(_segments(item, file, ids, known, subject, findings), stuff)
        seen.add(image_id)
    bare = [show(entry.get("file_name")) for identifier, entry in images.items() if identifier not in seen]
    for name in bare:
        findings.warn("no-segments", "no panoptic annotation; all its pixels are unlabelled.", name)
    if not flat:
        findings.refuse("no-annotations", "no segment is left that can be trained on.", "")
    return {**document, "annotations": flat}


def _segments(
    item: dict[str, Any],
    file: SegmentFile,
    ids: Iterator[int],
    known: Collection[int | None],
    subject: str,
    findings: Findings,
) -> Iterator[dict[str, Any]]:
    """Yield the segments of an image as entries of an instance file. ids: new ones; known: those of categories"""
    listed: set[int] = set()
    for place, segment in enumerate(item["segments_info"]):
        identifier = as_integer(segment.get("id")) if isinstance(segment, dict) else None
        name = f"segment {show(identifier)} of {subject}"
        if identifier is None or identifier < 1:
            findings.refuse("bad-segment-id", "`segments_info` needs integer ids above 0.", f"[{place}] of {subject}")
        elif identifier in listed:
            findings.refuse("duplicate-segment-id", "the id occurs twice in `segments_info`.", name)
        elif identifier not in file.runs:
            findings.warn("empty-segment", "no pixel of the PNG has its id; left out.", name)
        elif as_flag(segment.get("iscrowd")) is None:
            findings.refuse("bad-iscrowd", "`iscrowd` must be 0 or 1.", f"{name} ({show(segment.get('iscrowd'))})")
        elif as_integer(segment.get("category_id")) not in known or segment.get("category_id") is None:
            sentence = "its `category_id` is not among `categories`."
            findings.refuse("unknown-category", sentence, f"{name} (category_id {show(segment.get('category_id'))})")
        else:
            yield {
                "id": next(ids),
                "image_id": item["image_id"],
                "category_id": segment.get("category_id"),
                "iscrowd": segment.get("iscrowd", 0),
                "segmentation": file.rle(identifier),
            }
        listed.add(identifier or 0)
    unknown = sorted(file.runs.keys() - listed)
    if unknown:
        sentence = "the PNG has pixels of ids that `segments_info` does not list."
        findings.refuse("unlisted-segment", sentence, f"{subject}: {item['file_name']} (id {unknown[0]})")


def _united(segments: Iterable[dict[str, Any]], stuff: Collection[int | None]) -> list[dict[str, Any]]:
    """Return the segments of an image with one for each stuff class."""
    kept: list[dict[str, Any]] = []
    first: dict[int, dict[str, Any]] = {}
    for item in segments:
        kind = as_integer(item["category_id"])
        if kind is None or kind not in stuff or as_flag(item["iscrowd"]):
            kept.append(item)
        elif kind in first:
            parts = [compress(each["segmentation"]) for each in (first[kind], item)]
            first[kind]["segmentation"] = compress(mask_utils.merge(parts))
        else:
            first[kind] = item
            kept.append(item)
    return kept


def _stuff_ids(raw: list[Any], findings: Findings) -> set[int | None]:
    """Return the ids of the categories without instances; refuse those that do not tell things from stuff."""
    found = set()
    for place, entry in enumerate(raw):
        if not isinstance(entry, dict):
            continue
        if "isthing" not in entry or as_flag(entry["isthing"]) is None:
            subject = f"categories[{place}] (id {show(entry.get('id'))})"
            findings.refuse("no-isthing", "`isthing` must be 1 for a class with instances, else 0.", subject)
        elif not entry["isthing"]:
            found.add(as_integer(entry.get("id")))
    return found
