"""Search for images in a folder by their content, since file extensions may be unusual, wrong or missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath, PureWindowsPath

from PIL import Image

from vispeft.coco.problems import Findings, show
from vispeft.data.reading.images import FORMATS, is_picture
from vispeft.errors import DataError, reading

_ARCHIVE_REMAINS = "__MACOSX"
_SIDECARS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"))


SIDECAR = "kept by macOS or Windows beside the images, and no images themselves"
"""Explanation of sidecar files in messages."""


@dataclass(frozen=True)
class FolderScan:
    """Image files of a folder and its subfolders in order of their paths, and other files and folders passed over."""

    folder: Path
    pictures: tuple[Path, ...]
    ignored: tuple[Path, ...]

    def report_ignored(self, findings: Findings, *, expected: Collection[str] = ()) -> None:
        """Note the files that were passed over. expected: lower-case endings of files that have another purpose."""
        for path in self.ignored:
            if path.suffix.lower() not in expected:
                findings.warn("no-image", "no image; passed over.", show(path.relative_to(self.folder).as_posix()))


def find_pictures(folder: Path, *, skip: Sequence[Path] = ()) -> FolderScan:
    """Search a folder and its subfolders for images. Links are followed; hidden folders are passed over.

    A damaged file with an image extension is included, so that its reader can report it.
    skip: folders that are left out without a report
    """
    pictures: list[Path] = []
    ignored: list[Path] = []
    with reading(folder, DataError):
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist or is no folder.")
        skipped = {path.resolve() for path in skip if path.resolve() != folder.resolve()}
        for path in walk_files(folder, skipped, on_error=stop):
            is_image = path.is_file() and not is_sidecar(path) and (has_picture_ending(path) or is_picture(path))
            (pictures if is_image else ignored).append(path)
    return FolderScan(folder, tuple(sorted(pictures)), tuple(sorted(ignored)))


def stop(error: OSError) -> None:
    """End a walk at a folder that cannot be read. Raises the error."""
    raise error


def walk_files(
    folder: Path, skipped: Collection[Path] = (), on_error: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, links followed, and hidden folders themselves.

    on_error: called for a folder that cannot be read; None: it is passed over
    """
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, onerror=on_error, followlinks=True):
        here = Path(place)
        real = here.resolve()
        if real in seen or real in skipped:
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in folders if name.startswith(".") or name == _ARCHIVE_REMAINS]
        folders[:] = sorted(set(folders) - set(hidden))
        yield from (here / name for name in sorted(hidden + files))


def is_sidecar(path: PurePath) -> bool:
    """Return True for a file that macOS (`._a.jpg`, `.DS_Store`) or Windows (`Thumbs.db`) wrote beside the images.

    A `._a.jpg` holds the attributes of a.jpg and is never an image, whatever its ending.
    """
    return path.name.startswith("._") or path.name.lower() in _SIDECARS


def has_picture_ending(path: PurePath) -> bool:
    """Return True for a file with an image extension, in any letter case."""
    return path.suffix.lower() in _endings()


@cache
def _endings() -> frozenset[str]:
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)


def inner_path(folder: Path, file_name: str) -> Path | None:
    """Return the path of a file inside a folder, or None where the name leaves it by `..` or is absolute.

    Links are not resolved for it: `a/../b.png` is b.png, even where `a` is a link to elsewhere.
    """
    if is_absolute(file_name):
        return None
    if ".." not in PurePath(file_name).parts:
        return folder / file_name
    root = os.path.abspath(folder)
    path = Path(os.path.normpath(os.path.join(root, file_name)))
    return folder / path.relative_to(root) if path.is_relative_to(root) else None


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder and below it, each relative to it with `/`, that can stand in JSON."""
    found = (path for path in walk_files(folder) if not is_sidecar(path) and os.path.isfile(path))
    names = (os.path.relpath(path, folder).replace(os.sep, "/") for path in found)
    return [name for name in names if name == name.encode("utf-8", "ignore").decode()]


def is_absolute(file_name: str) -> bool:
    """Return True for a name that is an absolute path on any system."""
    return os.path.isabs(file_name) or bool(PureWindowsPath(file_name).root or PurePath(file_name).drive)
