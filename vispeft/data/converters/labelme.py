"""LabelMe files as COCO."""

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
from vispeft.data.reading.folder_scan import find_pictures, is_sidecar, walk_files
from vispeft.errors import DataError
from vispeft.io.json_files import UnreadableJsonError, load_json


@dataclass(frozen=True)
class _Labelled:
    """A LabelMe file with its usable shapes and its image."""

    path: Path
    document: dict[str, Any]
    shapes: tuple[Shape, ...]
    picture: Path


class _Pictures:
    """The images below a folder, by their place and by the name that a LabelMe file would have."""

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
        """The image at a place, or the only one there but for letter case: a.JPG may have become a.jpg on the way."""
        place = composed(os.path.abspath(path))
        alike = self._folded.get(place.casefold(), [])
        return self._exact.get(place) or (alike[0] if len(alike) == 1 else None)


def convert_labelme(folder: Path, out: Path, *, images: Path | None = None) -> tuple[Problem, ...]:
    """Write LabelMe files (one JSON per image) as COCO; classes are the labels in alphabetical order.

    Polygons, rectangles, circles and the masks of the AI tool become instances; shapes of one label and `group_id` in
    a file are parts of one instance. Shapes without an area are left out. Returns warnings.
    images: the folder that `file_name` shall be relative to; None for `folder`
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
    _tell_alike(builder.names, findings)
    _tell_images(files, scan.pictures, root, findings)
    scan.report_ignored(findings, expected=(".json",))
    for file in files:
        _add(builder, file, root)
    return builder.write(out, folder)


def _documents(folder: Path, out: Path, findings: Findings) -> dict[Path, dict[str, Any]]:
    """The LabelMe files of a folder; other JSON files are reported, except an earlier `out`."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is no folder.")
    if out.is_file() and _is_labelme(out):
        raise DataError(f"{out} is a LabelMe file, which the COCO file would replace; name another one.")
    documents = {}
    for path in sorted(walk_files(folder)):
        if path.suffix.lower() != ".json" or is_sidecar(path) or path.resolve() == out.resolve():
            continue
        document = _read_document(path)
        if document is None:
            sentence = "no LabelMe file, for it has no list `shapes`; passed over."
            findings.warn("other-json", sentence, show(path.relative_to(folder).as_posix()))
        else:
            documents[path] = document
    if not documents:
        told = "".join(f" {problem.message}" for problem in findings.problems())
        raise DataError(f"{folder} holds no LabelMe file.{told}")
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
        raise DataError(f"{path} is no LabelMe file: it {error.sentence}. Mend it or move it away.") from error
    if not isinstance(document, dict) or "shapes" not in document:
        return None
    shapes = document["shapes"]
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{path} is no LabelMe file: its `shapes` are no list of objects.")
    result: dict[str, Any] = document
    return result


def _picture_of(
    path: Path, document: dict[str, Any], folder: Path, pictures: _Pictures, findings: Findings
) -> Path | None:
    """The image of a LabelMe file: by `imagePath`, by its name, or the one beside it under the file's own name."""
    raw = document.get("imagePath")
    given = PurePosixPath(raw.replace("\\", "/")) if isinstance(raw, str) else PurePosixPath()
    beside = pictures.root / path.parent.relative_to(folder)
    for candidate in (path.parent / given, beside / given, beside / given.name, pictures.root / given.name):
        if given.name and (found := pictures.at(candidate)) is not None:
            return found
    own = pictures.by_key.get(key_of(path.with_suffix(""), folder), [])
    if len(own) == 1:
        sentence = "`imagePath` names no file; the image of the LabelMe file's own name is taken."
        findings.warn("image-by-name", sentence, f"{show(path.relative_to(folder).as_posix())} ({show(raw)})")
        return own[0]
    _refuse_missing(path, raw, given, beside, document, findings)
    return None


def _refuse_missing(
    path: Path, raw: Any, given: PurePosixPath, beside: Path, document: dict[str, Any], findings: Findings
) -> None:
    subject = f"{path} (imagePath {show(raw)})"
    elsewhere = path.parent / given
    if given.name and elsewhere.is_file():
        where = os.path.normpath(elsewhere.parent)
        sentence = f"the image lies outside the folder; give --images with the folder of the images, such as {where}."
        findings.refuse("image-outside", sentence, subject)
    elif document.get("imageData"):
        sentence = (
            "the image is not there, only a copy inside the LabelMe file (`imageData`); write it out as a file "
            "(`labelme_export_json`), or give --images with the folder of the images."
        )
        findings.refuse("image-inside", sentence, subject)
    else:
        sentence = f"the image is not in {beside}; give --images with the folder of the images."
        findings.refuse("image-missing", sentence, subject)


def _tell_alike(names: Sequence[str], findings: Findings) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        # old versions told instances apart by numbers: cat-1, cat-2
        plain = re.sub(r"-\d+$", "", composed(name).casefold()).replace("_", " ")
        alike.setdefault(" ".join(plain.split()), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            sentence = "labels that differ in little stay separate classes; instances are told apart by `group_id`."
            findings.warn("labels-alike", sentence, some(group))


def _tell_images(files: Sequence[_Labelled], pictures: Sequence[Path], root: Path, findings: Findings) -> None:
    owners: dict[Path, Path] = {}
    for file in files:
        if file.picture in owners:
            sentence = "LabelMe files of one image; keep one of them."
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
        sentence = "the size of the image has changed since it was labelled, so its shapes would not fit."
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
    """Labels and outlines of the instances of a file, in order of first sight."""
    instances: dict[Any, tuple[str, list[Outline]]] = {}
    for number, shape in enumerate(shapes):
        key = (shape.label, "alone", number) if shape.group is None else (shape.label, "group", str(shape.group))
        instances.setdefault(key, (shape.label, []))[1].append(shape.outline)
    return list(instances.values())
