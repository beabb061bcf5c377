"""Search for the image files that a COCO file lists; those that are missing are reported with the cause."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from vispeft.coco.problems import Findings, show
from vispeft.coco.sets import ImageEntry
from vispeft.coco.values import as_integer
from vispeft.data.reading.folder_scan import (
    SIDECAR,
    has_picture_ending,
    inner_path,
    is_absolute,
    is_sidecar,
    names_in,
)
from vispeft.data.reading.similar_names import SimilarFile, find_similar

_FIX = "`vispeft data check ... --fix FILE` writes the names of the files that are there."

_BY_HAND = "Correct the names or the image folder by hand."

_BROKEN_LINK = "links to files that are not there; fetch those (`dvc pull`, `git annex get`) or mend the links"


def annotation_counts(annotations: list[Any]) -> Counter[int | None]:
    """Count the annotations of each image id."""
    return Counter(as_integer(a.get("image_id")) for a in annotations if isinstance(a, dict))


@dataclass(frozen=True, slots=True)
class _MissingFile:
    """An image file that is not in the folder.

    is_outside: its name leaves the folder
    link: the broken link in its path
    similar: the file of a similar name
    """

    entry: ImageEntry
    is_outside: bool
    link: Path | None
    similar: SimilarFile | None


def find_files(
    entries: dict[int, ImageEntry], folder: Path, annotations: list[Any], findings: Findings, *, check_images: bool
) -> dict[int, ImageEntry]:
    """Return the entries whose file is in the image folder, and report the others with the cause.

    A name that leaves the folder by `..` or as an absolute path is never read; links inside the folder are followed.
    While a file is repaired, an entry gets the name of the one file that it must mean.

    check_images: report missing files; without it, only names that leave the folder
    """
    try:
        os.stat(os.path.join(folder, os.curdir))
    except PermissionError as error:
        sentence = f"the image folder {folder} cannot be read ({error.strerror}); check its permissions."
        findings.refuse("no-image-folder", sentence, "")
        return {}
    except OSError:
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
    absent = _missing_files([entry for entry in entries.values() if entry.id not in present], folder, files, names)
    counts = annotation_counts(annotations)
    causes = Counter(_report_missing(file, counts[file.entry.id], findings) for file in absent)
    for entry, similar in ((file.entry, file.similar) for file in absent):
        if findings.is_repairing and similar is not None and similar.file:
            present[entry.id] = replace(entry, file_name=similar.file, path=folder / similar.file)
    if not present and not findings.is_refused:
        reason = _why_none(causes, files)
        findings.refuse("no-usable-image", f"none of the {len(entries)} images is in {folder}: {reason}.", "")
    return {identifier: present[identifier] for identifier in entries if identifier in present}


def _why_no_folder(folder: Path) -> str:
    if folder.exists():
        return "is no folder"
    if folder.is_symlink():
        return f"is a link to {os.readlink(folder)}, which is not there"
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    similar = sorted(path.name for path in beside if path.name.casefold() == folder.name.casefold())
    return f"does not exist, but `{folder.with_name(similar[0])}` does" if similar else "does not exist"


def _why_none(causes: Counter[str], files: list[str]) -> str:
    """Return the reason that no image at all was found. causes: number of images by clause; an empty one is unknown."""
    known = [(cause, count) for cause, count in causes.most_common(4) if cause]
    if known:
        return "; ".join(cause if count == causes.total() else f"{cause} ({count} images)" for cause, count in known)
    if not files:
        return "the folder holds no files"
    images = [file for file in files if has_picture_ending(PurePath(file))]
    if not images:
        return f"the folder holds no images, but {len(files)} other files, such as `{show(files[0])}`"
    return f"the {len(images)} images there, such as `{show(images[0])}`, have quite other names"


def _missing_files(absent: list[ImageEntry], folder: Path, files: list[str], present: list[str]) -> list[_MissingFile]:
    """Return the missing files with their causes. present: names whose files were found"""
    paths = [inner_path(folder, entry.file_name) for entry in absent]
    links = [None if path is None else _broken_link(path, folder) for path in paths]
    wanted = {entry.file_name for entry, link in zip(absent, links, strict=True) if link is None}
    similar = find_similar(folder, files, wanted, present)
    return [
        _MissingFile(entry, path is None, link, similar.get(entry.file_name))
        for entry, path, link in zip(absent, paths, links, strict=True)
    ]


def _report_missing(file: _MissingFile, num_annotations: int, findings: Findings) -> str:
    """Report a missing file, and return the cause as a clause; an empty one where it is not known."""
    if file.is_outside:
        return _report_outside(file, findings)
    name, left_out, similar = show(file.entry.file_name), "; left out with its annotations.", file.similar
    if is_sidecar(Path(file.entry.file_name)):
        kind, cause, subject = "sidecar-file", SIDECAR, name
    elif file.link is not None:
        target = "links in a circle" if _is_circle(file.link) else f"a link to {os.readlink(file.link)}"
        kind, cause, subject = "broken-link", _BROKEN_LINK, f"{name} ({target})"
    elif similar is None:
        kind, cause, subject = "missing-image", "", name
    else:
        kind, cause, subject = "missing-image", similar.cause, f"`{name}` (missing, but {similar.hint})"
        if similar.file and findings.is_repairing:
            kind, left_out = "near-image", "; the names of the files that are there are used."
        else:
            left_out += f" {_FIX if similar.file else _BY_HAND}"
    sentence = (cause or "listed but not in the image folder") + left_out
    findings.warn(kind, sentence, f"{subject} [{num_annotations} annotations]")
    return cause


def _report_outside(file: _MissingFile, findings: Findings) -> str:
    name, similar = file.entry.file_name, file.similar
    leaves = f"`file_name` leaves the image folder {'as an absolute path' if is_absolute(name) else 'by `..`'}"
    cause = f"{leaves} ({similar.cause})" if similar is not None else leaves
    subject = f"image {file.entry.id} (file_name {show(name)}{f'; {similar.hint}' if similar else ''})"
    if similar is not None and similar.file:
        remedy, repair = f". {_FIX}", "; the names of the files that are there are used."
    else:
        remedy = "; put the files into it, and their names relative to it."
        repair = "; left out with its annotations."
    findings.refuse("path-outside", cause + remedy, subject, repair=cause + repair)
    return cause


def _broken_link(path: Path, folder: Path) -> Path | None:
    """Return the broken link between the folder and the file, or None."""
    way = [path, *path.parents]
    way = way[: way.index(folder)] if folder in way else way[:1]
    return next((each for each in way if os.path.islink(each) and not os.path.exists(each)), None)


def _is_circle(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
