"""Checks of image files: complete, readable, and of the size that the COCO file gives."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vispeft.coco.problems import Findings, show
from vispeft.coco.sets import ImageEntry
from vispeft.data.reading.channels import RGB, verify_image
from vispeft.data.reading.folder_scan import SIDECAR, is_sidecar
from vispeft.data.reading.images import ImageHeader, quiet, read_header
from vispeft.data.reading.missing_files import annotation_counts
from vispeft.errors import DataError

DECODED_AT_MOST = 20_000
"""Number of images up to which a check decodes them in full; for larger sets it reads only headers and last bytes."""

WORTH_THREADS = 16

Headers = dict[Path, ImageHeader | DataError]
"""Header of each image file, or the error where it cannot be read."""


_POINTER = "only pointers to images that Git LFS or git-annex keeps elsewhere; fetch them (`git lfs pull`)"
_POINTERS = (b"version https://git-lfs", b"/annex/objects/", b"version https://hawser")

_ENDINGS = {b"\xff\xd8": (b"\xff\xd9", 65536), b"\x89P": (b"IEND", 64)}


def check_files(
    entries: dict[int, ImageEntry],
    folder: Path,
    annotations: list[Any],
    findings: Findings,
    headers: Headers,
    num_channels: int = RGB,
) -> dict[int, ImageEntry]:
    """Return the entries whose file can be used, with missing sizes filled in, and report the others.

    headers: headers that are known already; new ones are added
    num_channels: channels that the images must have
    """
    counts = annotation_counts(annotations)
    headers |= _read_all(
        sorted({entry.path for entry in entries.values() if entry.path is not None} - headers.keys()), num_channels
    )
    kept: dict[int, ImageEntry] = {}
    for entry in entries.values():
        header = headers[entry.path] if entry.path is not None else DataError(f"{entry.file_name} has no path.")
        if isinstance(header, DataError):
            _report_unusable(entry, header, counts[entry.id], findings)
        elif (sized := _with_checked_size(entry, header, findings)) is not None:
            kept[entry.id] = sized
            if header.is_stack:
                findings.warn(
                    "several-pictures", "several pictures in one file; the first is used.", show(entry.file_name)
                )
    if not kept and entries and not findings.is_refused:
        findings.refuse("no-usable-image", f"none of the {len(entries)} images in {folder} can be used.", "")
    return kept


def _report_unusable(entry: ImageEntry, error: DataError, num_annotations: int, findings: Findings) -> None:
    kind, sentence, subject = "unreadable-image", "left out with its annotations.", show(entry.file_name)
    if entry.path is not None and is_sidecar(entry.path):
        kind, sentence = "sidecar-file", f"{SIDECAR}; {sentence}"
    elif entry.path is not None and _is_pointer(entry.path):
        kind, sentence = "pointer-file", f"{_POINTER}; {sentence}"
    else:
        subject += f" ({str(error).removeprefix(f'{entry.path} ').removesuffix('.')})"
    findings.warn(kind, sentence, f"{subject} [{num_annotations} annotations]")


def _is_pointer(path: Path) -> bool:
    """Return True for a file that only names content that Git LFS or git-annex keeps elsewhere."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(64).startswith(_POINTERS)
    except OSError:
        return False


def _with_checked_size(entry: ImageEntry, header: ImageHeader, findings: Findings) -> ImageEntry | None:
    if entry.height < 1:
        findings.warn(
            "no-size-in-json", "no `height` and `width` in the JSON; taken from the file.", show(entry.file_name)
        )
        return replace(entry, height=header.height, width=header.width)
    if (entry.height, entry.width) == (header.height, header.width):
        return entry
    turned = header.is_turned and (entry.height, entry.width) == (header.width, header.height)
    hint = " before its EXIF orientation is applied" if turned else ""
    if not turned and (entry.height, entry.width) == (header.width, header.height):
        hint = " with width and height exchanged"
    findings.refuse(
        "image-size",
        "the size in the JSON differs from the file's (as shown, EXIF applied), so its masks would not fit.",
        f"{show(entry.file_name)} (JSON {entry.width}x{entry.height}{hint}, file {header.width}x{header.height})",
        repair="the size in the JSON differs from the file's; left out with its annotations.",
    )
    return None


def _read_all(paths: list[Path], num_channels: int) -> Headers:
    # forms of other channels differ too much for a look at the end of the file
    is_decoded = len(paths) <= DECODED_AT_MOST or num_channels != RGB
    read = partial(verify_image, num_channels=num_channels) if is_decoded else _verify_ends

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
    """Return the header of an image file that has its end mark; for sets too large to decode before training.

    A file without the mark at its end is decoded: other bytes may follow, which no reader minds. Raises `DataError`.
    """
    header = read_header(path)
    with path.open("rb") as file:
        ending, reach = _ENDINGS.get(file.read(2), (b"", 0))
        file.seek(max(path.stat().st_size - reach, 0))
        if ending and ending not in file.read():
            return verify_image(path)
    return header
