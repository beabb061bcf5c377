"""Reader of COCO instance files: malformed files never crash it, and wrong entries are reported, never trained on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vispeft.coco.annotation_boxes import with_rectangle
from vispeft.coco.annotations import check_crowds, read_annotations
from vispeft.coco.categories import read_categories, with_category_list
from vispeft.coco.file_names import why_no_file_name, with_file_names
from vispeft.coco.foreign_formats import PANOPTIC, foreign_format_hint, is_panoptic
from vispeft.coco.identifiers import with_integer_ids
from vispeft.coco.problems import CheckReport, Findings, show
from vispeft.coco.sets import Annotation, CocoSet, Groups, ImageEntry
from vispeft.coco.values import as_integer, is_text, sides_of
from vispeft.data.reading.channels import RGB
from vispeft.data.reading.image_files import Headers, check_files
from vispeft.data.reading.images import LARGEST_IMAGE
from vispeft.data.reading.missing_files import find_files
from vispeft.errors import DataError
from vispeft.io.json_files import UnreadableJsonError, load_json


def read_coco(annotations: Path, images: Path | None, *, check_images: bool = True, num_channels: int = RGB) -> CocoSet:
    """Read a COCO instance file. Entries that were left out or corrected are listed in `.report.warnings`.

    images: the folder that `file_name` is relative to; None where only the annotations matter
    check_images: check that every image file exists, is complete and has the size that the JSON gives
    num_channels: channels that the images must have; RGB for 3

    Raises one `DataError` that lists all reasons why the file cannot be used.
    """
    folder = None if images is None else Path(images)
    return usable(*examine(Path(annotations), folder, check_images=check_images, num_channels=num_channels))


def usable(coco_set: CocoSet | None, report: CheckReport) -> CocoSet:
    """Return a set that was read. Raises one `DataError` that lists all reasons why its file cannot be used."""
    report.raise_if_refused()
    if coco_set is None:
        raise DataError(f"{report.annotations} cannot be used.")
    return coco_set


def examine(
    annotations: Path,
    images: Path | None,
    *,
    check_images: bool,
    repair: bool = False,
    headers: Headers | None = None,
    num_channels: int = RGB,
    boxes_alone: bool = False,
) -> tuple[CocoSet | None, CheckReport]:
    """Read a COCO instance file and report on it. The set is None exactly when the report refuses the file.

    repair: leave out or correct entries that would be refused otherwise, where nothing is guessed
    headers: headers that an earlier call on the same set has read; new ones are added
    boxes_alone: take the rectangle of each `bbox` in the place of the mask, for detection
    """
    findings = Findings(is_repairing=repair)
    document = load_document(annotations, findings)
    if document is not None and repair:
        document = with_file_names(with_integer_ids(document, findings), images, findings)
    if document is not None and boxes_alone:
        items = [with_rectangle(item, place, findings) for place, item in enumerate(document["annotations"])]
        document = {**document, "annotations": items}
    known = {} if headers is None else headers
    return examine_document(
        document, annotations, images, findings, check_images=check_images, headers=known, num_channels=num_channels
    )


def examine_document(
    document: dict[str, Any] | None,
    annotations: Path,
    images: Path | None,
    findings: Findings,
    *,
    check_images: bool,
    headers: Headers,
    num_channels: int,
) -> tuple[CocoSet | None, CheckReport]:
    """Read the content of a COCO instance file and report on it, as `examine` does.

    document: None where the file cannot be read, which is among the findings
    annotations: the file, for the report
    """
    if document is None:
        return None, CheckReport(annotations, findings.problems())
    categories = read_categories(document["categories"], document["annotations"], findings)
    entries = _read_images(document["images"], images, findings)
    if images is not None:
        entries = find_files(entries, images, document["annotations"], findings, check_images=check_images)
        if check_images:
            entries = check_files(entries, images, document["annotations"], findings, headers, num_channels)
    entries = _with_usable_sizes(entries, findings)
    listed = {as_integer(entry.get("id")) for entry in document["images"] if isinstance(entry, dict)}
    found = read_annotations(document["annotations"], categories, entries, listed, findings)
    instances = [a for a in found if not a.is_crowd]
    check_crowds(document["annotations"], len(instances), findings)
    report = CheckReport(
        annotations, findings.problems(), len(categories), len(entries), len(instances), len(found) - len(instances)
    )
    if report.refused:
        return None, report
    instances_of, crowds_of = _grouped(found, entries)
    kinds, pictures = tuple(categories.values()), tuple(entries.values())
    return CocoSet(annotations, images, kinds, pictures, instances_of, crowds_of, report), report


def _grouped(found: Iterable[Annotation], image_ids: Iterable[int]) -> tuple[Groups, Groups]:
    """Return the instances and the crowd regions of each image, in the order of the images."""
    per_image: dict[int, tuple[list[Annotation], list[Annotation]]] = {identifier: ([], []) for identifier in image_ids}
    for annotation in found:
        per_image[annotation.image_id][annotation.is_crowd].append(annotation)
    return Groups(pair[0] for pair in per_image.values()), Groups(pair[1] for pair in per_image.values())


def load_document(path: Path, findings: Findings) -> dict[str, Any] | None:
    """Return the COCO document, or None, with the reason among the findings."""
    document = load_lists(path, findings)
    if document is not None and is_panoptic(document["annotations"]):
        findings.refuse("panoptic", f"{PANOPTIC}.", "")
        return None
    return document


def load_lists(
    path: Path, findings: Findings, keys: Sequence[str] = ("images", "categories", "annotations")
) -> dict[str, Any] | None:
    """Return a JSON document with filled lists under `keys`, or None, with the reason among the findings."""
    document = _load_json(path, findings)
    if findings.is_refused:
        return None
    hint = foreign_format_hint(document)
    if not isinstance(document, dict) or hint:
        sentence = "the top level must be an object with images, annotations and categories"
        findings.refuse("not-coco", f"{sentence}; {hint}." if hint else f"{sentence}.", "")
        return None
    document = with_category_list(document, findings)
    for key in keys:
        _require_list(document, key, findings)
    return None if findings.is_refused else document


def _load_json(path: Path, findings: Findings) -> Any:
    try:
        return load_json(path, build_object=partial(_object, findings))
    except UnreadableJsonError as error:
        findings.refuse(error.kind, f"{error.sentence}.", "")
    return None


def _object(findings: Findings, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of a JSON file. A key with two values is reported; JSON readers silently keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key in {key: None for key, value in pairs if found[key] != value}:
            findings.refuse(
                "duplicate-key",
                "the key occurs twice in one object, with different values; keep one of them.",
                f"`{show(key)}`" + (f" (of id {show(found['id'])})" if "id" in found else ""),
                repair="the key occurs twice in one object, with different values; the last one is used.",
            )
    return found


def _require_list(document: dict[str, Any], key: str, findings: Findings) -> None:
    if key not in document:
        findings.refuse(f"no-{key}-key", f"has no `{key}` key, so it is no COCO instance file.", "")
    elif not isinstance(document[key], list):
        findings.refuse(f"bad-{key}", f"`{key}` must be a list, but is {show(document[key])}.", "")
    elif not document[key]:
        findings.refuse(f"no-{key}", f"lists no {key}: its `{key}` is empty.", "")


def _read_images(raw: list[Any], folder: Path | None, findings: Findings) -> dict[int, ImageEntry]:
    """Return image entries by id in the order of the file; height and width are 0 where the file gives none."""
    entries: dict[int, ImageEntry] = {}
    for place, item in enumerate(raw):
        identifier = as_integer(item.get("id")) if isinstance(item, dict) else None
        file_name = item.get("file_name") if isinstance(item, dict) else None
        if identifier is None:
            shown = show(item.get("id")) if isinstance(item, dict) else show(item)
            findings.refuse(
                "bad-image-id",
                "image ids must be integers.",
                f"images[{place}] with id {shown}",
                repair="no integer id; left out.",
            )
        elif not isinstance(file_name, str) or not is_text(file_name):
            findings.refuse(
                "bad-file-name",
                why_no_file_name(item),
                f"image {identifier} (file_name {show(file_name)})",
                repair="no `file_name` that a file can have; left out with its annotations.",
            )
        elif identifier in entries:
            _report_duplicate_image(entries[identifier], item, findings)
        else:
            sides = _sides(item, findings, identifier)
            if sides is not None:
                entries[identifier] = ImageEntry(identifier, file_name, folder and folder / file_name, *sides)
    counts = Counter(os.path.normpath(entry.file_name) for entry in entries.values())
    for file_name, count in counts.items():
        if count > 1:
            findings.warn("same-file-twice", "listed more than once; each entry is used.", show(file_name))
    return entries


def _report_duplicate_image(entry: ImageEntry, item: Mapping[str, Any], findings: Findings) -> None:
    """Report a second entry of an image id: a warning for the same image, a refusal for another."""
    name = show(item["file_name"])
    sides = tuple(as_integer(item.get(key)) or 0 for key in ("height", "width"))
    if (entry.file_name, entry.height, entry.width) == (item["file_name"], *sides):
        findings.warn("same-image-twice", "the same entry twice; used once.", f"image id {entry.id} ({name})")
        return
    names = f"image id {entry.id} ({show(entry.file_name)} and {name})"
    findings.refuse(
        "duplicate-image-id", "is used by two images, so annotations cannot be assigned to one of them.", names
    )


def _sides(item: Mapping[str, Any], findings: Findings, identifier: int) -> tuple[int, int] | None:
    given = [item.get("height"), item.get("width")]
    if given == [None, None]:
        return 0, 0
    if (sides := sides_of(item)) is not None:
        return sides
    findings.refuse(
        "bad-image-size",
        "`height` and `width` must be positive integers.",
        f"image {identifier} (height {show(given[0])}, width {show(given[1])})",
        repair="`height` and `width` are no positive integers; taken from the file.",
    )
    return (0, 0) if findings.is_repairing else None


def _with_usable_sizes(entries: dict[int, ImageEntry], findings: Findings) -> dict[int, ImageEntry]:
    kept = {}
    for entry in entries.values():
        if entry.height < 1:
            findings.refuse("no-image-size", "has no `height` and `width`; give the image folder.", f"image {entry.id}")
        elif entry.height * entry.width > LARGEST_IMAGE:
            subject = f"{show(entry.file_name)} ({entry.width}x{entry.height})"
            sentence = f"more than {LARGEST_IMAGE:,} pixels; left out with its annotations. Cut it into tiles."
            findings.warn("image-too-large", sentence, subject)
        else:
            kept[entry.id] = entry
    return kept
