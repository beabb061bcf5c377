"""Conversion of LabelMe files to COCO."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vispeft.coco.problems import Findings, Problem, show
from vispeft.coco.values import as_integer
from vispeft.data.converters.builder import Builder, composed, key_of, some
from vispeft.data.converters.labelme_shapes import Outline, Shape, Stamp, draw, read_shape
from vispeft.data.reading.folder_scan import find_pictures, is_sidecar, stop, walk_files
from vispeft.errors import DataError, reading
from vispeft.io.json_files import UnreadableJsonError, load_json


@dataclass(frozen=True)
class _Labelled:
    """A LabelMe file with its usable shapes and its image."""

    path: Path
    document: dict[str, Any]
    shapes: tuple[Shape, ...]
    picture: Path


class _Pictures:
    """Images below a folder, by their path and by the key of a LabelMe file with the same name."""

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.root = root
        self.by_key: dict[str, list[Path]] = {}
        self._exact: dict[str, Path] = {}
        self._folded: dict[str, list[Path]] = {}
        for path in paths:
            self.by_key.setdefault(key_of(path, root), []).append(path)
            place = composed(os.path.abspath(path))
            self._exact[place] = path
            self._folded.setdefault(place.casefold(), []).append(path)

    def at(self, path: Path) -> Path | None:
        """Return the image at a path, or the only one that differs in letter case, such as a.JPG for a.jpg."""
        place = composed(os.path.abspath(path))
        alike = self._folded.get(place.casefold(), [])
        return self._exact.get(place) or (alike[0] if len(alike) == 1 else None)


def convert_labelme(folder: Path, out: Path, *, images: Path | None = None) -> tuple[Problem, ...]:
    """Write LabelMe files (one JSON per image) as COCO; classes are the labels in alphabetical order.

    Polygons, rectangles, circles and the masks of the AI tool become instances; shapes of one label and `group_id` in
    a file are parts of one instance. Shapes without an area are left out. Returns warnings.
    images: the folder of the images, to which `file_name` is relative; None for `folder`
    """
    builder = Builder([])
    findings = builder.findings
    root = images or folder
    documents = _documents(folder, out, findings)
    scan = find_pictures(root)
    pictures = _Pictures(scan.pictures, root)
    files = []
    for path, document in documents.items():
        place = path.relative_to(folder).as_posix()
        read = [read_shape(shape, f"{place} (shape {n})", findings) for n, shape in enumerate(document["shapes"], 1)]
        picture = _picture_of(path, document, folder, pictures, findings)
        if picture is not None:
            files.append(_Labelled(path, document, tuple(shape for shape in read if shape is not None), picture))
    builder.names[:] = sorted({shape.label for file in files for shape in file.shapes})
    _report_similar_labels(builder.names, findings)
    _report_unmatched(files, scan.pictures, root, findings)
    scan.report_ignored(findings, expected=(".json",))
    for file in files:
        _add(builder, file, root)
    return builder.write(out, folder)


def _documents(folder: Path, out: Path, findings: Findings) -> dict[Path, dict[str, Any]]:
    """Return the LabelMe files of a folder; other JSON files are reported, except an earlier `out`."""
    with reading(folder, DataError):
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist or is not a folder.")
        paths = sorted(walk_files(folder, on_error=stop))
    if os.path.isfile(out) and _is_labelme(out):
        raise DataError(f"{out} is a LabelMe file, which the COCO file would overwrite; choose another output path.")
    documents = {}
    for path in paths:
        if path.suffix.lower() != ".json" or is_sidecar(path) or path.resolve() == out.resolve():
            continue
        document = _read_document(path)
        if document is None:
            sentence = "not a LabelMe file, because it has no list `shapes`; ignored."
            findings.warn("other-json", sentence, show(path.relative_to(folder).as_posix()))
        else:
            documents[path] = document
    if not documents:
        details = "".join(f" {problem.message}" for problem in findings.problems())
        raise DataError(f"{folder} contains no LabelMe file.{details}")
    return documents


def _is_labelme(path: Path) -> bool:
    try:
        return _read_document(path) is not None
    except DataError:
        return False


def _read_document(path: Path) -> dict[str, Any] | None:
    try:
        document = load_json(path)
    except UnreadableJsonError as error:
        if error.kind == "no-file":
            raise DataError(f"{path} {error.sentence}.") from error
        raise DataError(f"{path} is not a LabelMe file: it {error.sentence}. Repair or remove it.") from error
    if not isinstance(document, dict) or "shapes" not in document:
        return None
    shapes = document["shapes"]
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{path} is not a LabelMe file: its `shapes` are not a list of objects.")
    result: dict[str, Any] = document
    return result


def _picture_of(
    path: Path, document: dict[str, Any], folder: Path, pictures: _Pictures, findings: Findings
) -> Path | None:
    """Return the image of a LabelMe file: by `imagePath`, by its file name alone, or by the LabelMe file's name."""
    raw = document.get("imagePath")
    given = PurePosixPath(raw.replace("\\", "/")) if isinstance(raw, str) else PurePosixPath()
    beside = pictures.root / path.parent.relative_to(folder)
    for candidate in (path.parent / given, beside / given, beside / given.name, pictures.root / given.name):
        if given.name and (found := pictures.at(candidate)) is not None:
            return found
    own = pictures.by_key.get(key_of(path.with_suffix(""), folder), [])
    if len(own) == 1:
        sentence = "`imagePath` names no existing file; the image with the name of the LabelMe file is used."
        findings.warn("image-by-name", sentence, f"{show(path.relative_to(folder).as_posix())} ({show(raw)})")
        return own[0]
    _refuse_missing(path, raw, given, beside, document, findings)
    return None


def _refuse_missing(
    path: Path, raw: Any, given: PurePosixPath, beside: Path, document: dict[str, Any], findings: Findings
) -> None:
    subject = f"{path} (imagePath {show(raw)})"
    elsewhere = path.parent / given
    if given.name and os.path.isfile(elsewhere):
        where = os.path.normpath(elsewhere.parent)
        sentence = f"the image is outside the folder; give --images with the folder of the images, such as {where}."
        findings.refuse("image-outside", sentence, subject)
    elif document.get("imageData"):
        sentence = (
            "the image file is missing, and only a copy inside the LabelMe file exists (`imageData`); export it to a "
            "file (`labelme_export_json`), or give --images with the folder of the images."
        )
        findings.refuse("image-inside", sentence, subject)
    else:
        sentence = f"the image is not in {beside}; give --images with the folder of the images."
        findings.refuse("image-missing", sentence, subject)


def _report_similar_labels(names: Sequence[str], findings: Findings) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        # old versions of LabelMe numbered the instances of a label: cat-1, cat-2
        plain = re.sub(r"-\d+$", "", composed(name).casefold()).replace("_", " ")
        alike.setdefault(" ".join(plain.split()), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            sentence = (
                "similar labels become separate classes; rename them if they are one class (instances are "
                "distinguished by `group_id`)."
            )
            findings.warn("labels-alike", sentence, some(group))


def _report_unmatched(files: Sequence[_Labelled], pictures: Sequence[Path], root: Path, findings: Findings) -> None:
    owners: dict[Path, Path] = {}
    for file in files:
        if file.picture in owners:
            sentence = "LabelMe files for the same image; keep one of them."
            findings.refuse("one-image", sentence, f"{owners[file.picture]} and {file.path}")
        owners[file.picture] = file.path
    for picture in pictures:
        if picture not in owners:
            sentence = "images without a LabelMe file; left out."
            findings.warn("no-labelme-file", sentence, show(picture.relative_to(root).as_posix()))


def _add(builder: Builder, file: _Labelled, root: Path) -> None:
    header = builder.add_image(file.picture, root)
    if header is None:
        return
    size = tuple(as_integer(file.document.get(key)) for key in ("imageWidth", "imageHeight"))
    if None not in size and size != (header.width, header.height):
        sentence = "the image size differs from the size at labelling, so the shapes would not fit; restore the image."
        subject = f"{file.path} (labelled {size[0]}x{size[1]}, file {header.width}x{header.height})"
        builder.findings.refuse("image-size", sentence, subject)
        return
    for number, (label, outlines) in enumerate(_instances(file.shapes), start=1):
        subject = f"{show(label)}, instance {number} of {file.path}"
        polygons = [outline for outline in outlines if not isinstance(outline, Stamp)]
        if len(polygons) == len(outlines):
            builder.add_polygons(builder.names.index(label), polygons, subject)
        else:
            mask = draw(outlines, header.height, header.width)
            builder.add_mask(builder.names.index(label), np.asarray(mask), subject)


def _instances(shapes: Sequence[Shape]) -> list[tuple[str, list[Outline]]]:
    """Return the labels and outlines of the instances of a file, in order of first occurrence."""
    instances: dict[Any, tuple[str, list[Outline]]] = {}
    for number, shape in enumerate(shapes):
        key = (shape.label, "alone", number) if shape.group is None else (shape.label, "group", str(shape.group))
        instances.setdefault(key, (shape.label, []))[1].append(shape.outline)
    return list(instances.values())
