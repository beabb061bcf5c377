"""Conversion of YOLO segmentation labels to COCO."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from vispeft.coco.problems import Findings, Problem, show
from vispeft.data.converters.builder import Builder, checked_names, composed, key_of, some
from vispeft.data.reading.folder_scan import find_pictures, is_sidecar, stop, walk_files
from vispeft.errors import DataError, reading

_EXPECTED = (".txt", ".yaml", ".yml", ".cache")
_NO_LABELS = ("classes", "labels", "names", "train", "val", "valid", "test", "readme", "notes")
_SHORTEST = 7


def convert_yolo(images: Path, labels: Path, out: Path, *, names: Sequence[str] | Path) -> tuple[Problem, ...]:
    """Write YOLO segmentation labels as COCO. Returns warnings; raises `DataError` for what cannot be converted safely.

    labels: folder of one text file per image, lines `class x1 y1 x2 y2 ...` in 0..1; an image without one is background
    names: class names in order, a `data.yaml` with `names`, or a text file with one name per line
    """
    builder = Builder(_names_in(names) if isinstance(names, Path) else checked_names(names, "`names`"))
    label_files = _label_files(labels)
    scan = find_pictures(images)
    scan.report_ignored(builder.findings, expected=_EXPECTED)
    used: dict[Path, Path] = {}
    bare: list[Path] = []
    for path in scan.pictures:
        label_path = label_files.get(key_of(path, images)) or label_files.get(composed(_relative(path, images)))
        header = builder.add_image(path, images)
        if label_path is None:
            bare.append(path)
            continue
        if label_path in used:
            subject = f"{show(_relative(path, images))} and {show(_relative(used[label_path], images))}"
            builder.findings.refuse(
                "shared-labels", "images with the same name share a label file; rename one.", subject
            )
        used[label_path] = path
        if header is None:
            continue
        for category_idx, points, subject in _read_lines(label_path, len(builder.names), builder.findings):
            builder.add_polygons(category_idx, [points * (header.width, header.height)], subject)
    if scan.pictures and not used:
        raise DataError(_nothing_found(images, labels, bare, label_files))
    _report_unmatched(builder.findings, images, labels, bare, [p for p in label_files.values() if p not in used])
    return builder.write(out, images)


def _report_unmatched(
    findings: Findings, images: Path, labels: Path, bare: Sequence[Path], unused: Sequence[Path]
) -> None:
    near = {composed(_relative(path.with_suffix(""), labels)).casefold(): path for path in unused}
    for path in bare:
        subject = show(_relative(path, images))
        if (other := near.get(key_of(path, images).casefold())) is None:
            findings.warn("no-labels", "no label file; used as background.", subject)
        else:
            sentence = "no label file with the image's name, but one that differs in letter case; rename it."
            findings.refuse("labels-of-like-name", sentence, f"{subject} ({show(_relative(other, labels))})")
    for path in unused:
        if path.stem.lower() not in _NO_LABELS:
            findings.warn(
                "no-image-of-labels", "label files without an image; left out.", show(_relative(path, labels))
            )


def _label_files(labels: Path) -> dict[str, Path]:
    """Return the text files of a folder by their relative path without extension."""
    with reading(labels, DataError):
        if not labels.is_dir():
            raise DataError(f"{labels} does not exist or is not a folder.")
        found = [*walk_files(labels, on_error=stop)]
    paths = (path for path in found if path.suffix.lower() == ".txt" and not is_sidecar(path))
    return {composed(_relative(path, labels)[: -len(path.suffix)]): path for path in paths}


def _nothing_found(images: Path, labels: Path, bare: Sequence[Path], label_files: dict[str, Path]) -> str:
    wanted = {Path(key_of(path, images)).name for path in bare}
    looked_for = some([f"{key_of(path, images)}.txt" for path in bare])
    message = f"{labels}: no label file was found for any of the {len(bare)} images (searched for {looked_for})."
    places = [(labels, label_files)]
    places += [(place, _label_files(place)) for place in (images, images.parent / "labels") if place.is_dir()]
    for place, files in places:
        named = [path for key, path in files.items() if Path(key).name in wanted]
        if named:
            remedy = f"--labels {named[0].parent}" if named[0].parent != labels else f"--images {bare[0].parent}"
            return f"{message} {place} contains {some([_relative(path, place) for path in named])}: give {remedy}."
    found = [_relative(path, labels) for path in label_files.values()]
    return f"{message} The folder contains {some(found) if found else 'no .txt file'}."


def _names_in(path: Path) -> list[str]:
    text = _read_text(path)
    if path.suffix.lower() in (".txt", ".names"):
        return checked_names(_name_lines(path, text), str(path))
    try:
        # all scalars stay text: YAML reads the name `no` as false, and `007` as 7
        document = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{path} must be a YAML file with `names`: {error}") from error
    names = document.get("names") if isinstance(document, dict) else document
    if isinstance(names, dict):
        names = _in_order(path, names)
    if not isinstance(names, list):
        raise DataError(f"{path} must contain `names`, a list of class names or a mapping from number to name.")
    _check_yaml(path, document if isinstance(document, dict) else {}, len(names))
    return checked_names(names, str(path))


def _name_lines(path: Path, text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    for first in (0, 1):
        numbered = [re.match(rf"\s*{number}(\s*[:,=]|\s)", line) for number, line in enumerate(lines, start=first)]
        if len(lines) > 1 and all(numbered):
            raise DataError(f"{path}: its lines begin with numbers ({show(lines[0])}); keep only the names, in order.")
    return lines


def _in_order(path: Path, names: dict[Any, Any]) -> list[Any]:
    try:
        numbered = {int(key): name for key, name in names.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: `names` must have whole numbers from 0 as keys.") from error
    if sorted(numbered) != list(range(len(names))):
        raise DataError(f"{path}: `names` must count from 0 without gaps.")
    return [numbered[number] for number in range(len(names))]


def _check_yaml(path: Path, document: dict[Any, Any], num_names: int) -> None:
    if "kpt_shape" in document:
        raise DataError(f"{path}: `kpt_shape` marks labels of boxes with key points, which contain no masks.")
    if str(document.get("nc", num_names)).strip() not in (str(num_names), ""):
        raise DataError(f"{path}: `nc` is {document['nc']}, but `names` has {num_names} names.")


def _read_text(path: Path) -> str:
    """Return the text of a file in UTF-8 or UTF-16, with or without a byte order mark."""
    try:
        data = path.read_bytes()
        is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read ({error}); save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def _read_lines(path: Path, num_classes: int, findings: Findings) -> Iterator[tuple[int, NDArray[np.float64], str]]:
    """Yield class, points [P, 2] in 0..1, and the place of each valid line; refuse the others."""
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        values = _numbers_in(line)
        fault = ("not-numbers", "must be numbers with decimal points.") if values is None else _fault_of(values)
        if values is None:
            place += f" ({show(line.strip())})"
        elif fault is None and values[0] not in range(num_classes):
            fault = ("unknown-class", f"class {values[0]:g} is not among the {num_classes} names.")
        if fault is not None or values is None:
            findings.refuse(*(fault or ("", "")), place)
            continue
        yield int(values[0]), values[1:].reshape(-1, 2), place


def _numbers_in(line: str) -> NDArray[np.float64] | None:
    """Return the numbers of a line, separated by spaces or commas; None where a comma may be a decimal point."""
    words = line.split()
    if len(words) > 1 and all(word.count(",") == 1 and "." not in word and word[-1] != "," for word in words[1:]):
        return None
    try:
        return np.array(line.replace(",", " ").split(), np.float64)
    except ValueError:
        return None


def _fault_of(values: NDArray[np.float64]) -> tuple[str, str] | None:
    """Return the kind of fault in the numbers of a line and a sentence about it, or None."""
    count = len(values)
    if count in (5, 6):
        what = "five numbers is a box (`class x y width height`)" if count == 5 else "six numbers is a box with a score"
        return f"box-of-{count}", (
            f"a line of {what}, not a polygon of at least three points, and masks are not made from boxes; "
            "draw the outline or delete the line."
        )
    if count > _SHORTEST and count % 2 == 0:
        return "even-count", (
            "an even count of numbers: one number follows the class and the pairs of x and y, such as a confidence "
            "(`save_conf`); remove it."
        )
    if count < _SHORTEST or not np.isfinite(values).all():
        return "not-a-polygon", (
            "must be a class and at least three points of finite numbers (`class x1 y1 x2 y2 x3 y3 ...`)."
        )
    if values[1:].min() < -0.01 or values[1:].max() > 1.01:
        return "out-of-range", (
            "coordinates must be in 0..1, relative to the image; these may be pixels: divide x by the width and y by "
            "the height."
        )
    return None


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
