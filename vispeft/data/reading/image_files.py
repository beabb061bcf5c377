"""Checks of a COCO file's images: present, inside the folder, complete, and of the size that the JSON gives."""

from __future__ import annotations

import errno
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from vispeft.coco.problems import Findings, show
from vispeft.coco.sets import ImageEntry
from vispeft.coco.values import as_integer
from vispeft.data.reading.folder_scan import has_picture_ending, is_sidecar, walk_files
from vispeft.data.reading.images import ImageHeader, quiet, read_header, verify_picture
from vispeft.data.reading.similar_names import Near, find_near
from vispeft.errors import DataError

DECODED_AT_MOST = 20_000
"""Images of a set that are decoded in full when it is checked; of larger sets, only the last bytes are looked at."""

WORTH_THREADS = 16

Headers = dict[Path, ImageHeader | DataError]
"""Of every image file its header, or the reason that it cannot be read."""

_FIX = "`vispeft data check ... --fix FILE` writes the names of the files that are there."

_BY_HAND = "Correct the names or the image folder by hand."
_SIDECAR = "kept by macOS or Windows beside the images, and no images themselves"
_BROKEN_LINK = "links to files that are not there; fetch those (`dvc pull`, `git annex get`) or mend the links"
_POINTER = "only pointers to images that Git LFS or git-annex keeps elsewhere; fetch them (`git lfs pull`)"
_POINTERS = (b"version https://git-lfs", b"/annex/objects/", b"version https://hawser")

_ENDINGS = {b"\xff\xd8": (b"\xff\xd9", 65536), b"\x89P": (b"IEND", 64)}


@dataclass(frozen=True, slots=True)
class _AbsentFile:
    """An image file that is not in the folder.

    is_outside: its name leaves the folder
    link: the link on the way to it whose target is not there
    near: the file of a near name
    """

    entry: ImageEntry
    is_outside: bool
    link: Path | None
    near: Near | None


def find_files(
    entries: dict[int, ImageEntry], folder: Path, annotations: list[Any], findings: Findings, *, check_images: bool
) -> dict[int, ImageEntry]:
    """The entries whose file is in the image folder. The others are reported, with their cause.

    A name that leaves the folder by `..` or as an absolute path is never read; links inside the folder are followed.
    While a file is repaired, an entry gets the name of the one file that it must mean.

    check_images: tell files that are not there; without it, only names that leave the folder
    """
    if not folder.is_dir():
        findings.refuse("no-image-folder", f"the image folder {folder} {_why_no_folder(folder)}.", "")
        return {}
    present = {
        entry.id: replace(entry, path=path)
        for entry in entries.values()
        if (path := inner_path(folder, entry.file_name)) is not None and (not check_images or os.path.exists(path))
    }
    if len(present) == len(entries):
        return present
    # JSON cannot hold names in other encodings
    files = names_in(folder)
    names = [entry.file_name for entry in present.values()]
    absent = _absent_files([entry for entry in entries.values() if entry.id not in present], folder, files, names)
    counts = _annotation_counts(annotations)
    causes = Counter(_tell_absent(file, counts[file.entry.id], findings) for file in absent)
    for entry, near in ((file.entry, file.near) for file in absent):
        if findings.is_repairing and near is not None and near.file:
            present[entry.id] = replace(entry, file_name=near.file, path=folder / near.file)
    if not present and not findings.is_refused:
        reason = _why_none(causes, files)
        findings.refuse("no-usable-image", f"none of the {len(entries)} images is in {folder}: {reason}.", "")
    return {identifier: present[identifier] for identifier in entries if identifier in present}


def check_files(
    entries: dict[int, ImageEntry], folder: Path, annotations: list[Any], findings: Findings, headers: Headers
) -> dict[int, ImageEntry]:
    """The entries whose file can be used, with sizes filled in where the JSON gives none. The others are reported.

    headers: those that are known already; new ones are added
    """
    counts = _annotation_counts(annotations)
    headers |= _read_all(sorted({entry.path for entry in entries.values() if entry.path is not None} - headers.keys()))
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
        findings.refuse("no-usable-image", f"none of the {len(entries)} images in {folder} can be used.", "")
    return kept


def inner_path(folder: Path, file_name: str) -> Path | None:
    """The path of a file inside a folder, or None where the name leaves it by `..` or is absolute.

    Links are not resolved for it: `a/../b.png` is b.png, even where `a` is a link to elsewhere.
    """
    if _is_absolute(file_name):
        return None
    if ".." not in PurePath(file_name).parts:
        return folder / file_name
    root = os.path.abspath(folder)
    path = Path(os.path.normpath(os.path.join(root, file_name)))
    return folder / path.relative_to(root) if path.is_relative_to(root) else None


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder and below it, each relative to it with `/`, that can stand in JSON."""
    found = (path for path in walk_files(folder) if not is_sidecar(path) and path.is_file())
    names = (os.path.relpath(path, folder).replace(os.sep, "/") for path in found)
    return [name for name in names if name == name.encode("utf-8", "ignore").decode()]


def _annotation_counts(annotations: list[Any]) -> Counter[int | None]:
    return Counter(as_integer(a.get("image_id")) for a in annotations if isinstance(a, dict))


def _why_no_folder(folder: Path) -> str:
    if folder.exists():
        return "is no folder"
    if folder.is_symlink():
        return f"is a link to {os.readlink(folder)}, which is not there"
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    near = sorted(path.name for path in beside if path.name.casefold() == folder.name.casefold())
    return f"does not exist, but `{folder.with_name(near[0])}` does" if near else "does not exist"


def _why_none(causes: Counter[str], files: list[str]) -> str:
    """The reason that no image at all was found. causes: clauses, or nothing, and how many images each concerns"""
    known = [(cause, count) for cause, count in causes.most_common(4) if cause]
    if known:
        return "; ".join(cause if count == causes.total() else f"{cause} ({count} images)" for cause, count in known)
    if not files:
        return "the folder holds no files"
    images = [file for file in files if has_picture_ending(PurePath(file))]
    if not images:
        return f"the folder holds no images, but {len(files)} other files, such as `{show(files[0])}`"
    return f"the {len(images)} images there, such as `{show(images[0])}`, have quite other names"


def _absent_files(absent: list[ImageEntry], folder: Path, files: list[str], present: list[str]) -> list[_AbsentFile]:
    """The reason for each file that is not there. present: names that are"""
    paths = [inner_path(folder, entry.file_name) for entry in absent]
    links = [None if path is None else _broken_link(path, folder) for path in paths]
    wanted = {entry.file_name for entry, link in zip(absent, links, strict=True) if link is None}
    near = find_near(folder, files, wanted, present)
    return [
        _AbsentFile(entry, path is None, link, near.get(entry.file_name))
        for entry, path, link in zip(absent, paths, links, strict=True)
    ]


def _tell_absent(file: _AbsentFile, num_annotations: int, findings: Findings) -> str:
    """Tell of a file that is not there, and return the cause as a clause; nothing where it is not known."""
    if file.is_outside:
        return _tell_outside(file, findings)
    name, left_out, near = show(file.entry.file_name), "; left out with its annotations.", file.near
    if is_sidecar(Path(file.entry.file_name)):
        kind, cause, subject = "sidecar-file", _SIDECAR, name
    elif file.link is not None:
        target = "links in a circle" if _is_circle(file.link) else f"a link to {os.readlink(file.link)}"
        kind, cause, subject = "broken-link", _BROKEN_LINK, f"{name} ({target})"
    elif near is None:
        kind, cause, subject = "missing-image", "", name
    else:
        kind, cause, subject = "missing-image", near.cause, f"`{name}` (missing, but {near.hint})"
        if near.file and findings.is_repairing:
            kind, left_out = "near-image", "; the names of the files that are there are used."
        else:
            left_out += f" {_FIX if near.file else _BY_HAND}"
    sentence = (cause or "listed but not in the image folder") + left_out
    findings.warn(kind, sentence, f"{subject} [{num_annotations} annotations]")
    return cause


def _tell_outside(file: _AbsentFile, findings: Findings) -> str:
    name, near = file.entry.file_name, file.near
    leaves = f"`file_name` leaves the image folder {'as an absolute path' if _is_absolute(name) else 'by `..`'}"
    cause = f"{leaves} ({near.cause})" if near is not None else leaves
    subject = f"image {file.entry.id} (file_name {show(name)}{f'; {near.hint}' if near else ''})"
    if near is not None and near.file:
        remedy, repair = f". {_FIX}", "; the names of the files that are there are used."
    else:
        remedy = "; put the files into it, and their names relative to it."
        repair = "; left out with its annotations."
    findings.refuse("path-outside", cause + remedy, subject, repair=cause + repair)
    return cause


def _is_absolute(file_name: str) -> bool:
    """Return True for a name that is an absolute path on any system."""
    return os.path.isabs(file_name) or bool(PureWindowsPath(file_name).root or PurePath(file_name).drive)


def _broken_link(path: Path, folder: Path) -> Path | None:
    """The link on the way from the folder to a file whose target is not there."""
    way = [path, *path.parents]
    way = way[: way.index(folder)] if folder in way else way[:1]
    return next((each for each in way if os.path.islink(each) and not os.path.exists(each)), None)


def _is_circle(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _tell_unusable(entry: ImageEntry, error: DataError, num_annotations: int, findings: Findings) -> None:
    kind, sentence, subject = "unreadable-image", "left out with its annotations.", show(entry.file_name)
    if entry.path is not None and is_sidecar(entry.path):
        kind, sentence = "sidecar-file", f"{_SIDECAR}; {sentence}"
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
    if not turned and (entry.height, entry.width) == (header.width, header.height):
        hint = " with width and height exchanged"
    findings.refuse(
        "image-size",
        "the size in the JSON differs from the file's (as shown, EXIF applied), so its masks would not fit.",
        f"{show(entry.file_name)} (JSON {entry.width}x{entry.height}{hint}, file {header.width}x{header.height})",
        repair="the size in the JSON differs from the file's; left out with its annotations.",
    )
    return None


def _read_all(paths: list[Path]) -> Headers:
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
