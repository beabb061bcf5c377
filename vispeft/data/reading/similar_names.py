"""Search for files of similar names where a `file_name` is not in the image folder."""

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
_ABOVE_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class SimilarFile:
    """The file that is most similar to a name that is not in the image folder.

    hint: what there is, such as "`a.jpg` is there"
    cause: a clause that is the same for all names of the same kind, such as "the names have percent escapes"
    file: the one file that the name must mean, relative to the folder with `/`; empty where taking it would be guessing
    """

    hint: str
    cause: str
    file: str = ""


def find_similar(
    folder: Path, files: Iterable[str], wanted: Collection[str], found: Iterable[str]
) -> dict[str, SimilarFile]:
    """For each wanted name, the file that is near to it, or several, or another folder that has it; if anything.

    folder: the image folder
    files: all files in it, relative to it with `/`
    wanted: names that are not there
    found: names that are there; a file that one of them means is not taken for another name
    """
    found = set(found)
    has_uploads = any(_is_random_prefix(name) for name in wanted)
    index = _Index(folder, tuple(files), has_uploads=has_uploads, are_all_wanted=not found)
    near = {name: answer for name in wanted if (answer := index.most_similar(name)) is not None}
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


def _with_common_folder(near: dict[str, SimilarFile], folder: Path) -> dict[str, SimilarFile]:
    """Name the folder of the files whose names lack their folders, if all are in the same one."""
    deeper = {name: answer.file for name, answer in near.items() if answer.file and _DEEPER in answer.cause}
    beneath = {file.removesuffix(f"/{name}") for name, file in deeper.items()}
    if len(beneath) != 1 or beneath <= set(deeper.values()):
        return near
    named = f"{_DEEPER} (give `{folder / beneath.pop()}` as the image folder)"
    return {name: replace(answer, cause=answer.cause.replace(_DEEPER, named)) for name, answer in near.items()}


def path_parts(name: str, *, without: str = "") -> Parts:
    """Return the folders and the base name of a path that may have Windows separators or escapes, or be a URL.

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
    """Return the parts of a path, normalised so that all spellings of one path are equal."""
    parts = path_parts(name, without=without)
    if without != "space":
        parts = tuple(part.strip() for part in parts)
    if without != "unicode":
        parts = tuple(part if part.isascii() else unicodedata.normalize("NFKC", _decoded(part)) for part in parts)
    return parts if without == "case" else tuple(part.casefold() for part in parts)


def _decoded(text: str) -> str:
    """Return the original text where UTF-8 was decoded with an encoding of Windows or of ZIP archives."""
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
    """Return the base name that a file had before Label Studio added a prefix to it and replaced some characters."""
    plain = _UPLOAD_PREFIX.sub("", _with_usual_ending(base), count=1)
    return re.sub(r"[^-\w.]", "", plain.strip().replace(" ", "_"))


def _stem(base: str) -> str:
    """Return a base name without its image extensions, and without the size that VIA appends to them."""
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
class _Comparison:
    """Comparison of base names that ignores one difference.

    key: the base name without the difference
    cause: the difference, to follow "the names"
    is_certain: a file found so may be used in a repaired copy
    """

    key: Callable[[str], str]
    cause: str
    is_certain: bool = True


_EQUAL = _Comparison(lambda base: base, "")
_UPLOAD = _Comparison(_before_upload, "differ in the prefix that Label Studio adds on upload")
_ANY_ENDING = _Comparison(_stem, "have the ending of another format, or one too few or too many", is_certain=False)
_EXPORT = _Comparison(_before_export, "differ in the suffix that Roboflow adds on export", is_certain=False)
_COMPARISONS = (
    _EQUAL,
    _Comparison(_with_usual_ending, "have another ending of the same format"),
    _UPLOAD,
    _ANY_ENDING,
    _EXPORT,
)
"""The strictest first. A file of another format may be the mask of the image, and Roboflow may have cropped or rotated
an image: messages name such files, but a repaired copy never uses them."""


class _Index:
    """Index of the files of a folder by the ends of their paths.

    has_uploads: some of the wanted names have Label Studio's prefix
    are_all_wanted: none of the names was found; names that were found would prove that their folders are right
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
        self._comparisons = [comparison for comparison in _COMPARISONS if has_uploads or comparison is not _UPLOAD]
        self._ends = cache(self._list_ends)

    def places_of(self, found: Iterable[str]) -> set[str]:
        """Return the files that the names mean, also those that a file system opens in another letter case."""
        files = set(self._files)
        taken = {posixpath.normpath(name) for name in found}
        likes = (self._ends(_EQUAL).get(_folded(name), []) for name in taken - files)
        return taken | {self._files[place] for places in likes for place in places}

    def most_similar(self, name: str) -> SimilarFile | None:
        """Return the file of the most similar name, or None."""
        parts = _folded(name)
        if not parts or parts[-1].startswith("._"):
            return None
        num_leading = self._num_leading(parts)
        for comparison in self._comparisons:
            key = (*parts[:-1], comparison.key(parts[-1]))
            for start in sorted({0, num_leading}):
                whole = [
                    p
                    for p in self._candidates(name, key[start:], comparison)
                    if len(self._parts[p]) == len(key) - start
                ]
                if whole and key[start:] == parts and not _leaves(name):
                    return self._choose(name, whole, comparison, len(key))
                if whole:
                    return self._in_other_folder(name) or self._choose(name, whole, comparison, len(key) - start)
            for length in range(len(key), 0, -1):
                if places := self._candidates(name, key[-length:], comparison):
                    return self._in_other_folder(name) or self._choose(name, places, comparison, length)
        return self._in_other_folder(name)

    def _list_ends(self, comparison: _Comparison) -> dict[Parts, list[int]]:
        """Indices of files by every end of their paths."""
        ends: dict[Parts, list[int]] = defaultdict(list)
        for place, parts in enumerate(self._parts):
            if parts and (comparison.is_certain or has_picture_ending(PurePosixPath(parts[-1]))):
                key = (*parts[:-1], comparison.key(parts[-1]))
                for start in range(len(key)):
                    ends[key[start:]].append(place)
        return ends

    def _candidates(self, name: str, end: Parts, comparison: _Comparison) -> list[int]:
        places = self._ends(comparison).get(end, [])
        if comparison is not _UPLOAD:
            return places
        # two prefixes mean two uploads
        has_prefix = _has_upload_prefix(path_parts(name)[-1])
        return [place for place in places if _has_upload_prefix(self._parts[place][-1]) != has_prefix]

    def _num_leading(self, parts: Parts) -> int:
        """Count the leading folders of a name that are the image folder itself, or the end of its path."""
        own = self._folder_parts
        return max((n for n in range(1, len(parts)) if parts[:n] == own[len(own) - n :]), default=0)

    def _choose(self, name: str, places: list[int], comparison: _Comparison, length: int) -> SimilarFile:
        """Return the file that differs least from a name.

        length: number of last path parts that are equal
        """
        causes = {place: self._differences(name, place, comparison, length) for place in places[:_COMPARED_AT_MOST]}
        fewest = min(map(len, causes.values()))
        best = [place for place in causes if len(causes[place]) == fewest]
        if len(best) > 1 or len(places) > _COMPARED_AT_MOST:
            best = best if len(best) > 1 else places
            named = " and ".join(f"`{show(self._files[place])}`" for place in best[:2])
            more = f" and {len(places) - 2} more" if len(places) > 2 else ""
            return SimilarFile(f"{named}{more} are there", _SEVERAL)
        (place,) = best
        structure, is_certain = self._folder_difference(name, place, length)
        cause = "the names " + (" and ".join([*structure, *causes[place]]) or "fit otherwise")
        file = self._files[place] if is_certain and comparison.is_certain else ""
        return SimilarFile(f"`{show(self._files[place])}` is there", cause, file)

    def _folder_difference(self, name: str, place: int, length: int) -> tuple[list[str], bool]:
        """Return the difference in folders, and True where the file is certain in spite of it."""
        parts = _folded(name)
        num_extra, num_deeper = len(parts) - length, len(self._parts[place]) - length
        if num_extra and num_deeper:
            return ["have other folders"], False
        if num_deeper:
            return [_DEEPER], self._are_all_wanted
        if num_extra and num_extra == self._num_leading(parts):
            remedy = "" if _is_absolute(name) else f" (give `{self._above[num_extra - 1]}` as the image folder)"
            return [f"begin with the image folder itself{remedy}"], True
        if num_extra:
            is_same_folder = parts[num_extra - 1 : num_extra] == self._folder_parts[-1:]
            return ["begin with folders that are not in the image folder"], self._are_all_wanted or is_same_folder
        return [], True

    def _differences(self, name: str, place: int, comparison: _Comparison, length: int) -> list[str]:
        """Return all differences between a name and a file in the last parts of their paths."""
        causes = []

        def ends(without: str) -> list[Parts]:
            both = (_folded(name, without=without), _folded(self._files[place], without=without))
            return [(*parts[-length:-1], comparison.key(parts[-1])) for parts in both]

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
        return [*causes, comparison.cause] if comparison.cause else causes

    def _in_other_folder(self, name: str) -> SimilarFile | None:
        """Return a folder above or beside the image folder that has a file of exactly this name, or None."""
        parts = path_parts(name)
        self._num_asked += 1
        siblings = self._siblings if self._num_asked <= _SIBLINGS_ASKED_FOR else ()
        # far above, a single name is that of another file
        above = self._above if len(parts) > 1 else self._above[:_ABOVE_AT_MOST]
        for folder in (*above[:1], *siblings, *above[1:]):
            path = os.path.abspath(folder.joinpath(*parts))
            if os.path.isfile(path):
                if path.startswith(os.path.join(self._folder, "")):
                    return None
                if folder == self._above[-1]:
                    return SimilarFile("it is outside", "files of these names are there, but outside the image folder")
                return SimilarFile(
                    f"it is in `{folder}`", f"`{folder}` has files of these names (give it as the image folder)"
                )
        return None


def _has_upload_prefix(base: str) -> bool:
    return _UPLOAD_PREFIX.match(base) is not None


def _folders_above(folder: Path) -> tuple[Path, ...]:
    """Return all parent folders, the nearest first, relative in the same way as `folder`."""
    num_above = len(Path(os.path.abspath(folder)).parts) - 1
    return tuple(Path(os.path.normpath(folder.joinpath(*[".."] * n))) for n in range(1, num_above + 1))


def _siblings(folder: Path) -> tuple[Path, ...]:
    """Return the first folders beside `folder`."""
    try:
        inside = sorted(path for path in folder.parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return ()
    return tuple(path for path in inside if not path.samefile(folder))[:_SIBLINGS_AT_MOST]
