"""The image files behind a COCO file: are they there, inside the folder, whole, and of the size that the JSON gives."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from vispeft.data.images import ImageHeader, quiet, read_header, verify_picture
from vispeft.data.problems import Findings, show
from vispeft.data.sets import ImageEntry
from vispeft.data.values import as_integer
from vispeft.errors import DataError

DECODED_AT_MOST = 20_000
"""Images of a set that are decoded in full when it is checked; of larger sets, only the last bytes are looked at."""

WORTH_THREADS = 16

_SIDECARS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"))

_ENDINGS = {b"\xff\xd8": (b"\xff\xd9", 65536), b"\x89P": (b"IEND", 64)}


def check_files(
    entries: dict[int, ImageEntry], folder: Path, annotations: list[Any], findings: Findings
) -> dict[int, ImageEntry]:
    """The entries whose file can be used, with sizes filled in where the JSON gives none. The others are told."""
    counts = Counter(as_integer(a.get("image_id")) for a in annotations if isinstance(a, dict))
    paths = {entry.path for entry in entries.values() if entry.path is not None}
    headers = _read_all(sorted(paths))
    kept: dict[int, ImageEntry] = {}
    for entry in entries.values():
        header = headers[entry.path] if entry.path is not None else DataError(f"{entry.file_name} has no path.")
        if isinstance(header, DataError):
            _tell_unusable(entry, header, counts[entry.id], findings)
        elif (sized := _agree(entry, header, findings)) is not None:
            kept[entry.id] = sized
            if header.is_stack:
                findings.warn(
                    "several-pictures", "several pictures in one file; the first is used.", show(entry.file_name)
                )
    if not kept and entries and not findings.is_refused:
        findings.refuse("no-usable-image", f"none of the {len(entries)} images can be read from {folder}.", "")
    return kept


def keep_inside(entries: dict[int, ImageEntry], folder: Path, findings: Findings) -> dict[int, ImageEntry]:
    """The entries whose file lies in the image folder, links followed. No other file may ever be read."""
    if not folder.is_dir():
        findings.refuse("no-image-folder", f"the image folder {folder} does not exist or is no folder.", "")
        return {}
    root = folder.resolve()
    kept = {}
    for entry in entries.values():
        if _is_inside(root, entry):
            kept[entry.id] = entry
        else:
            findings.refuse(
                "path-outside",
                "`file_name` leaves the image folder; put the file into it, and its name relative to it.",
                f"image {entry.id} (file_name {show(entry.file_name)})",
                repair="`file_name` leaves the image folder; left out with its annotations.",
            )
    return kept


def is_sidecar(path: Path) -> bool:
    """Whether macOS (`._a.jpg`, `.DS_Store`) or Windows (`Thumbs.db`) wrote the file beside the images.

    A `._a.jpg` holds the attributes of a.jpg and is never an image, whatever its ending.
    """
    return path.name.startswith("._") or path.name.lower() in _SIDECARS


def _is_inside(root: Path, entry: ImageEntry) -> bool:
    if os.path.isabs(entry.file_name) or entry.path is None:
        return False
    try:
        return entry.path.resolve().is_relative_to(root)
    except (OSError, ValueError, RuntimeError):
        return False


def _tell_unusable(entry: ImageEntry, error: DataError, num_annotations: int, findings: Findings) -> None:
    if entry.path is not None and not os.path.lexists(entry.path):
        kind, sentence = "missing-image", "listed but not in the image folder; left out with its annotations."
        subject = show(entry.file_name)
    else:
        kind, sentence = "unreadable-image", "left out with its annotations."
        subject = f"{show(entry.file_name)} ({str(error).removeprefix(f'{entry.path} ').removesuffix('.')})"
    findings.warn(kind, sentence, f"{subject} [{num_annotations} annotations]")


def _agree(entry: ImageEntry, header: ImageHeader, findings: Findings) -> ImageEntry | None:
    if entry.height < 1:
        findings.warn(
            "no-size-in-json", "no `height` and `width` in the JSON; taken from the file.", show(entry.file_name)
        )
        return replace(entry, height=header.height, width=header.width)
    if (entry.height, entry.width) == (header.height, header.width):
        return entry
    turned = header.is_turned and (entry.height, entry.width) == (header.width, header.height)
    hint = " before its EXIF orientation is applied" if turned else ""
    findings.refuse(
        "image-size",
        "the size in the JSON differs from the file's (as shown, EXIF applied), so its masks would not fit.",
        f"{show(entry.file_name)} (JSON {entry.width}x{entry.height}{hint}, file {header.width}x{header.height})",
        repair="the size in the JSON differs from the file's; left out with its annotations.",
    )
    return None


def _read_all(paths: list[Path]) -> dict[Path, ImageHeader | DataError]:
    read = verify_picture if len(paths) <= DECODED_AT_MOST else _verify_ends

    def attempt(path: Path) -> ImageHeader | DataError:
        try:
            return read(path)
        except DataError as error:
            return error

    if len(paths) < WORTH_THREADS:
        with quiet():
            return {path: attempt(path) for path in paths}
    with quiet(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(attempt, paths), strict=True))


def _verify_ends(path: Path) -> ImageHeader:
    """The header of an image file whose end mark is there; for sets too large to decode before training."""
    header = read_header(path)
    with path.open("rb") as file:
        ending, reach = _ENDINGS.get(file.read(2), (b"", 0))
        file.seek(max(path.stat().st_size - reach, 0))
        if ending and ending not in file.read():
            raise DataError(f"{path} is cut off: its end mark is missing.")
    return header
