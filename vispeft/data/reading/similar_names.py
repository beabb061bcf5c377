"""Files whose names are near to a `file_name` that is not in the image folder, and the reasons for the difference."""

from __future__ import annotations

import html
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from vispeft.coco.problems import show
from vispeft.data.reading.folder_scan import has_picture_ending

Parts = tuple[str, ...]

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://[^/]*/?", re.IGNORECASE)
_ASKED_PATH = re.compile(r"/\?(?:[^#]*&)?d=([^&#]*)")
_DRIVE = re.compile(r"[a-z]:", re.IGNORECASE)
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)", re.IGNORECASE)
_EXPORT_SUFFIX = re.compile(r"[-_](?:jpe?g|png|bmp|webp|tiff?|avif|heic)\.rf\.[0-9a-z]{16,}$", re.IGNORECASE)
_VIA_SIZE = re.compile(r"(?<=\.)(jpe?g|png|bmp|webp|tiff?|gif)\d+$", re.IGNORECASE)
_SAME_FORMAT = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}

_FORMS = {
    "unicode": "differ from the files' in Unicode form (such as composed or decomposed letters, or UTF-8 read as "
    "another encoding)",
    "case": "differ from the files' in letter case",
}

_DEEPER = "lack the folders that the files are in"

_SEVERAL = "several files come near to one name"

_COMPARED_AT_MOST = 20
_SIBLINGS_AT_MOST = 50
_SIBLINGS_ASKED_FOR = 200


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest to a name that is not in the image folder.

    hint: what there is, such as "`a.jpg` is there"
    cause: a clause that is the same for all names of the same kind, such as "the names have percent escapes"
    file: the one file that the name must mean, relative to the folder with `/`; empty where taking it would be guessing
    """

    hint: str
    cause: str
    file: str = ""


def find_near(folder: Path, files: Iterable[str], wanted: Collection[str], found: Iterable[str]) -> dict[str, Near]:
    """For each wanted name, the file that is near to it, or several, or another folder that has it; if anything.

    folder: the image folder
    files: all files in it, relative to it with `/`
    wanted: names that are not there
    found: names that are there; a file that one of them means is not taken for another name
    """
    found = set(found)
    has_uploads = any(_is_random_prefix(name) for name in wanted)
    index = _Index(folder, tuple(files), has_uploads=has_uploads, are_all_wanted=not found)
    near = {name: answer for name in wanted if (answer := index.near(name)) is not None}
    taken = index.places_of(found)
    counts = Counter(answer.file for answer in near.values() if answer.file)
    has_several = any(answer.cause == _SEVERAL for answer in near.values())
    for name, answer in near.items():
        if has_several and _DEEPER in answer.cause:
            near[name] = replace(answer, file="")
        elif answer.file in taken:
            near[name] = replace(answer, cause=f"{answer.cause}, but those files are listed already", file="")
        elif counts[answer.file] > 1:
            near[name] = replace(answer, cause=f"{answer.cause}, but several of them come near to one file", file="")
    return _with_common_folder(near, folder)


def _with_common_folder(near: dict[str, Near], folder: Path) -> dict[str, Near]:
    """Name the folder that all files are in whose names lack their folders, if it is one."""
    deeper = {name: answer.file for name, answer in near.items() if answer.file and _DEEPER in answer.cause}
    beneath = {file.removesuffix(f"/{name}") for name, file in deeper.items()}
    if len(beneath) != 1 or beneath <= set(deeper.values()):
        return near
    named = f"{_DEEPER} (give `{folder / beneath.pop()}` as the image folder)"
    return {name: replace(answer, cause=answer.cause.replace(_DEEPER, named)) for name, answer in near.items()}


def path_parts(name: str, *, without: str = "") -> Parts:
    """The folders and the base name of a path in any spelling: with Windows separators, escaped, or as an address.

    without: a feature of names that is left as it is
    """
    if without != "address":
        if asked := _ASKED_PATH.search(name):
            name = asked[1]
        elif address := _ADDRESS.match(name):
            name = re.split(r"[?#]", name[address.end() :])[0]
    if without != "escape":
        # escaped twice where an address is part of another
        while (plain := unquote(name)) != name:
            name = plain
    if without != "entity":
        name = html.unescape(name)
    if without != "separator":
        name = name.replace("\\", "/")
    parts = [part for part in posixpath.normpath(name).split("/") if part not in ("", ".", "..")]
    return tuple(parts[1:] if len(parts) > 1 and _DRIVE.fullmatch(parts[0]) else parts)


def _folded(name: str, *, without: str = "") -> Parts:
    """The parts of a path in a form in which all spellings of one path are equal."""
    parts = path_parts(name, without=without)
    if without != "space":
        parts = tuple(part.strip() for part in parts)
    if without != "unicode":
        parts = tuple(part if part.isascii() else unicodedata.normalize("NFKC", _decoded(part)) for part in parts)
    return parts if without == "case" else tuple(part.casefold() for part in parts)


def _decoded(text: str) -> str:
    """The text that was meant where UTF-8 was read as an encoding of Windows or of ZIP archives."""
    for encoding in ("cp1252", "latin-1", "cp437"):
        try:
            return unicodedata.normalize("NFC", text).encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
    return text


def _is_random_prefix(name: str) -> bool:
    """Return True for a name that begins as uploads to Label Studio do, and not with the eight digits of a date."""
    prefix = _UPLOAD_PREFIX.match(posixpath.basename(name.replace("\\", "/")))
    return prefix is not None and not prefix[0][:-1].isdecimal()


def _with_usual_ending(base: str) -> str:
    stem, ending = posixpath.splitext(base)
    return stem + _SAME_FORMAT.get(ending.lower(), ending)


def _before_upload(base: str) -> str:
    """The base name that a file had before Label Studio added a prefix to it and replaced some characters."""
    plain = _UPLOAD_PREFIX.sub("", _with_usual_ending(base), count=1)
    return re.sub(r"[^-\w.]", "", plain.strip().replace(" ", "_"))


def _stem(base: str) -> str:
    """A base name without its endings as an image, and without the size that VIA writes behind them."""
    stem = posixpath.splitext(_VIA_SIZE.sub(r"\1", base))[0]
    while has_picture_ending(PurePosixPath(stem)):
        stem = posixpath.splitext(stem)[0]
    return stem


def _before_export(base: str) -> str:
    return _stem(_EXPORT_SUFFIX.sub("", _stem(base)))


def _is_address(name: str) -> bool:
    return _ASKED_PATH.search(name) is not None or _ADDRESS.match(name) is not None


def _is_absolute(name: str) -> bool:
    return name.startswith(("/", "\\")) or _DRIVE.match(name) is not None or _is_address(name)


def _leaves(name: str) -> bool:
    return _is_absolute(name) or ".." in name.replace("\\", "/").split("/")


def _has_spaces(name: str) -> bool:
    return any(part != part.strip() for part in path_parts(name))


_FEATURES: dict[str, tuple[Callable[[str], bool], str]] = {
    "address": (_is_address, "the form of an address (URL)"),
    "separator": (lambda name: "\\" in name, "Windows separators (`\\`)"),
    "escape": (lambda name: "%" in name, "percent escapes (%20 for a space)"),
    "entity": (lambda name: html.unescape(name) != name, "HTML escapes (`&amp;` for `&`)"),
    "space": (_has_spaces, "spaces at their ends"),
}


@dataclass(frozen=True, slots=True)
class _Likeness:
    """A form in which near base names are equal. cause: the difference that it passes over, after "the names"."""

    key: Callable[[str], str]
    cause: str
    is_certain: bool = True


_EQUAL = _Likeness(lambda base: base, "")
_UPLOAD = _Likeness(_before_upload, "differ in the prefix that Label Studio adds on upload")
_ANY_ENDING = _Likeness(_stem, "have the ending of another format, or one too few or too many", is_certain=False)
_EXPORT = _Likeness(_before_export, "differ in the suffix that Roboflow adds on export", is_certain=False)
_LIKENESSES = (
    _EQUAL,
    _Likeness(_with_usual_ending, "have another ending of the same format"),
    _UPLOAD,
    _ANY_ENDING,
    _EXPORT,
)
"""From the nearest on. A file of another format may be the mask of the image, and Roboflow may have cut or turned the
image: they are named, but never taken."""


class _Index:
    """The files of a folder by the ends of their paths.

    has_uploads: some of the wanted names have Label Studio's prefix
    are_all_wanted: no name at all is there; otherwise those that are show that folders in names are right
    """

    def __init__(self, folder: Path, files: Sequence[str], *, has_uploads: bool, are_all_wanted: bool) -> None:
        self._are_all_wanted = are_all_wanted
        self._folder = os.path.abspath(folder)
        self._folder_parts = _folded(Path(self._folder).as_posix())
        self._above = _folders_above(folder)
        self._siblings = _siblings(folder) if are_all_wanted else ()
        self._num_asked = 0
        self._files = files
        self._parts = [_folded(file) for file in files]
        self._likenesses = [likeness for likeness in _LIKENESSES if has_uploads or likeness is not _UPLOAD]
        self._ends = cache(self._list_ends)

    def places_of(self, found: Iterable[str]) -> set[str]:
        """The files that names mean. One that a file system opens under another letter case stands for all its like."""
        files = set(self._files)
        taken = {posixpath.normpath(name) for name in found}
        likes = (self._ends(_EQUAL).get(_folded(name), []) for name in taken - files)
        return taken | {self._files[place] for places in likes for place in places}

    def near(self, name: str) -> Near | None:
        """The nearest to one name."""
        parts = _folded(name)
        if not parts or parts[-1].startswith("._"):
            return None
        num_own = self._num_own(parts)
        for likeness in self._likenesses:
            key = (*parts[:-1], likeness.key(parts[-1]))
            for start in sorted({0, num_own}):
                whole = [p for p in self._like(name, key[start:], likeness) if len(self._parts[p]) == len(key) - start]
                if whole and key[start:] == parts and not _leaves(name):
                    return self._chosen(name, whole, likeness, len(key))
                if whole:
                    return self._elsewhere(name) or self._chosen(name, whole, likeness, len(key) - start)
            for length in range(len(key), 0, -1):
                if places := self._like(name, key[-length:], likeness):
                    return self._elsewhere(name) or self._chosen(name, places, likeness, length)
        return self._elsewhere(name)

    def _list_ends(self, likeness: _Likeness) -> dict[Parts, list[int]]:
        """Places of files by every end of their paths."""
        ends: dict[Parts, list[int]] = defaultdict(list)
        for place, parts in enumerate(self._parts):
            if parts and (likeness.is_certain or has_picture_ending(PurePosixPath(parts[-1]))):
                key = (*parts[:-1], likeness.key(parts[-1]))
                for start in range(len(key)):
                    ends[key[start:]].append(place)
        return ends

    def _like(self, name: str, end: Parts, likeness: _Likeness) -> list[int]:
        places = self._ends(likeness).get(end, [])
        if likeness is not _UPLOAD:
            return places
        # two prefixes mean two uploads
        has_prefix = _has_upload_prefix(path_parts(name)[-1])
        return [place for place in places if _has_upload_prefix(self._parts[place][-1]) != has_prefix]

    def _num_own(self, parts: Parts) -> int:
        """Leading folders of a name that are the image folder itself, or the end of its path."""
        own = self._folder_parts
        return max((n for n in range(1, len(parts)) if parts[:n] == own[len(own) - n :]), default=0)

    def _chosen(self, name: str, places: list[int], likeness: _Likeness, length: int) -> Near:
        """The one of like files that differs least from a name. length: how many last parts of the paths are equal"""
        causes = {place: self._differences(name, place, likeness, length) for place in places[:_COMPARED_AT_MOST]}
        fewest = min(map(len, causes.values()))
        best = [place for place in causes if len(causes[place]) == fewest]
        if len(best) > 1 or len(places) > _COMPARED_AT_MOST:
            best = best if len(best) > 1 else places
            named = " and ".join(f"`{show(self._files[place])}`" for place in best[:2])
            more = f" and {len(places) - 2} more" if len(places) > 2 else ""
            return Near(f"{named}{more} are there", _SEVERAL)
        (place,) = best
        structure, is_certain = self._structure(name, place, length)
        cause = "the names " + (" and ".join([*structure, *causes[place]]) or "fit otherwise")
        file = self._files[place] if is_certain and likeness.is_certain else ""
        return Near(f"`{show(self._files[place])}` is there", cause, file)

    def _structure(self, name: str, place: int, length: int) -> tuple[list[str], bool]:
        """The difference in folders, and whether the file is certain in spite of it."""
        parts = _folded(name)
        num_extra, num_deeper = len(parts) - length, len(self._parts[place]) - length
        if num_extra and num_deeper:
            return ["have other folders"], False
        if num_deeper:
            return [_DEEPER], self._are_all_wanted
        if num_extra and num_extra == self._num_own(parts):
            remedy = "" if _is_absolute(name) else f" (give `{self._above[num_extra - 1]}` as the image folder)"
            return [f"begin with the image folder itself{remedy}"], True
        if num_extra:
            is_same_folder = parts[num_extra - 1 : num_extra] == self._folder_parts[-1:]
            return ["begin with folders that are not in the image folder"], self._are_all_wanted or is_same_folder
        return [], True

    def _differences(self, name: str, place: int, likeness: _Likeness, length: int) -> list[str]:
        """All that differs between a name and a file in the last parts of their paths."""
        causes = []

        def ends(without: str) -> list[Parts]:
            both = (_folded(name, without=without), _folded(self._files[place], without=without))
            return [(*parts[-length:-1], likeness.key(parts[-1])) for parts in both]

        file = self._files[place]
        for feature, (shows, noun) in _FEATURES.items():
            if shows(name) or shows(file):
                mine, other = ends(feature)
                if mine != other or (shows(name) and feature == "address"):
                    causes.append(f"have {noun}" if shows(name) else f"lack {noun} that the files have")
        for form, cause in _FORMS.items():
            if form == "case" or not (name.isascii() and file.isascii() and "%" not in name + file):
                mine, other = ends(form)
                if mine != other:
                    causes.append(cause)
        return [*causes, likeness.cause] if likeness.cause else causes

    def _elsewhere(self, name: str) -> Near | None:
        """A folder above or beside the image folder that has a file under the very name."""
        parts = path_parts(name)
        self._num_asked += 1
        siblings = self._siblings if self._num_asked <= _SIBLINGS_ASKED_FOR else ()
        for folder in (*self._above, *siblings):
            path = os.path.abspath(folder.joinpath(*parts))
            if os.path.isfile(path):
                if path.startswith(os.path.join(self._folder, "")):
                    return None
                if folder == self._above[-1]:
                    return Near("it is outside", "files of these names are there, but outside the image folder")
                return Near(
                    f"it is in `{folder}`", f"`{folder}` has files of these names (give it as the image folder)"
                )
        return None


def _has_upload_prefix(base: str) -> bool:
    return _UPLOAD_PREFIX.match(base) is not None


def _folders_above(folder: Path) -> tuple[Path, ...]:
    """All folders above one, from the nearest on, as seen from where the folder was named."""
    num_above = len(Path(os.path.abspath(folder)).parts) - 1
    return tuple(Path(os.path.normpath(folder.joinpath(*[".."] * n))) for n in range(1, num_above + 1))


def _siblings(folder: Path) -> tuple[Path, ...]:
    """The first folders beside one."""
    try:
        inside = sorted(path for path in folder.parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return ()
    return tuple(path for path in inside if not path.samefile(folder))[:_SIBLINGS_AT_MOST]
