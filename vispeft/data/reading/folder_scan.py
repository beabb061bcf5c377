"""Images in a folder, recognised by content: an ending may be unusual, wrong or missing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from PIL import Image

from vispeft.coco.problems import Findings, show
from vispeft.data.reading.images import FORMATS, is_picture
from vispeft.errors import DataError

_ARCHIVE_REMAINS = "__MACOSX"
_SIDECARS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"))


@dataclass(frozen=True)
class FolderScan:
    """Image files of a folder and its subfolders in order of their paths, and other files and folders passed over."""

    folder: Path
    pictures: tuple[Path, ...]
    passed_over: tuple[Path, ...]

    def tell(self, findings: Findings, *, expected: Collection[str] = ()) -> None:
        """Note the files that were passed over. expected: lower-case endings of files that have another purpose."""
        for path in self.passed_over:
            if path.suffix.lower() not in expected:
                findings.warn("no-image", "no image; passed over.", show(path.relative_to(self.folder).as_posix()))


def find_pictures(folder: Path, *, skip: Sequence[Path] = ()) -> FolderScan:
    """Search a folder and its subfolders for images. Links are followed; hidden folders are passed over.

    A file with an image's ending counts even if it is damaged, so that its reader can name it.
    skip: folders that are left out without a word
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is no folder.")
    skipped = {path.resolve() for path in skip if path.resolve() != folder.resolve()}
    pictures: list[Path] = []
    passed_over: list[Path] = []
    for path in walk_files(folder, skipped):
        is_image = path.is_file() and not is_sidecar(path) and (has_picture_ending(path) or is_picture(path))
        (pictures if is_image else passed_over).append(path)
    return FolderScan(folder, tuple(sorted(pictures)), tuple(sorted(passed_over)))


def walk_files(folder: Path, skipped: Collection[Path] = ()) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, links followed, and hidden folders themselves."""
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
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
    """Tell whether macOS (`._a.jpg`, `.DS_Store`) or Windows (`Thumbs.db`) wrote the file beside the images.

    A `._a.jpg` holds the attributes of a.jpg and is never an image, whatever its ending.
    """
    return path.name.startswith("._") or path.name.lower() in _SIDECARS


def has_picture_ending(path: PurePath) -> bool:
    """Tell whether a file is named as an image, in any letter case."""
    return path.suffix.lower() in _endings()


@cache
def _endings() -> frozenset[str]:
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)
