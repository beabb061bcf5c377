"""Conversion of folders of instance masks to COCO."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.problems import Findings, Problem, show
from vispeft.data.converters.builder import Builder, checked_names, composed, key_of, some
from vispeft.data.converters.mask_values import is_like_background, read_values, refuse_soft_edges, separate_parts
from vispeft.data.reading.folder_scan import find_pictures
from vispeft.data.reading.images import ImageHeader
from vispeft.errors import ConfigError, DataError

_SEVERAL_PARTS = (
    "one value with several separate parts, which became one instance; if this is a semantic mask (values are "
    "classes), number its objects (`scipy.ndimage.label`) or save one mask per object."
)
_EMPTY = "only background; no instance."
_BACKGROUND = "a value on all corners and most of the image, which became an instance; write 0 for background."

_LIKE_UNLABELLED = (
    "the value 255 besides consecutive instance numbers from 1 on, which became an instance; if it means unlabelled, "
    "as in Pascal VOC, write 0."
)
_VOID = 255


@dataclass(frozen=True)
class _Found:
    """The mask files of one image. is_single: one file with all instances, else one file per instance in `folder`."""

    folder: Path
    paths: tuple[Path, ...]
    is_single: bool


class _MaskFolder:
    """Mask files by the image they belong to: `a.png`, or a folder `a` of one file per instance."""

    def __init__(self, folder: Path, skip: Sequence[Path]) -> None:
        self._single: dict[str, list[Path]] = {}
        self._grouped: dict[str, list[Path]] = {}
        self.folder = folder
        scan = find_pictures(folder, skip=skip)
        self.ignored = scan.ignored
        for path in scan.pictures:
            self._single.setdefault(key_of(path, folder), []).append(path)
            self._grouped.setdefault(composed(path.parent.relative_to(folder).as_posix()), []).append(path)
        self._used: set[Path] = set()

    def of(self, key: str) -> _Found | None:
        """Return the masks of an image, None without any. An empty folder gives an empty list of files."""
        single = self._single.get(key, [])
        if len(single) > 1:
            raise DataError(f"{some([str(path) for path in single])} are masks of the same image; keep one of them.")
        paths = single or self._grouped.get(key, [])
        self._used.update(paths)
        place = self.folder / key
        return _Found(place, tuple(paths), bool(single)) if paths or os.path.isdir(place) else None

    def unused(self) -> list[Path]:
        """Return the files that belong to no image so far."""
        return [path for paths in self._single.values() for path in paths if path not in self._used]


def convert_masks(
    images: Path, masks: Path, out: Path, *, names: Sequence[str], classes: Path | None = None
) -> tuple[Problem, ...]:
    """Write instance masks as COCO. Returns warnings; raises `DataError` for what cannot be converted safely.

    masks: for the image `a.jpg` either `a.png` (or TIFF, BMP, GIF), in which every value except 0 (and 255 in a
    palette file: unlabelled, as in Pascal VOC) is one instance, or a folder `a` with one file per instance
    classes: folder of files with class values (1 for the first name), for more than one class; an instance gets the
    most frequent value of its pixels
    """
    if classes is None and len(names) != 1:
        raise ConfigError(f"`names` must be one class without `classes`, but is {list(names)}.")
    if os.path.exists(masks) and os.path.exists(images) and masks.samefile(images):
        raise DataError(f"{masks}: images and masks must be in two folders, because a mask is an image too.")
    builder = Builder(checked_names(names, "`names`"))
    others = [masks] if classes is None else [masks, classes]
    scan = find_pictures(images, skip=others)
    scan.report_ignored(builder.findings)
    found = _MaskFolder(masks, [images, *others[1:]])
    kinds = None if classes is None else _MaskFolder(classes, [images, masks])
    bare = []
    owners: dict[Path, Path] = {}
    for path in scan.pictures:
        files, header = found.of(key_of(path, images)), builder.add_image(path, images)
        if files is None:
            bare.append(path)
            continue
        if shared := [each for each in files.paths if each in owners]:
            names = [show(each.relative_to(images).as_posix()) for each in (owners[shared[0]], path)]
            sentence = f"images that share the mask {shared[0]}; rename one, and give each its own."
            builder.findings.refuse("shared-masks", sentence, " and ".join(names))
            continue
        owners.update(dict.fromkeys(files.paths, path))
        if header is not None:
            _add_instances(
                builder, files, header, None if kinds is None else _class_values(kinds, path, images, header)
            )
    if scan.pictures and len(bare) == len(scan.pictures):
        raise DataError(_nothing_found(images, masks, bare, found.unused() or found.ignored))
    _report_unmatched(builder.findings, images, masks, bare, found.unused())
    return builder.write(out, images)


def _add_instances(builder: Builder, files: _Found, header: ImageHeader, kinds: NDArray[np.int64] | None) -> None:
    for mask, subject in _instances(files, header, builder.findings):
        value = 1 if kinds is None else int(_most_frequent(kinds[mask]))
        if not 1 <= value <= len(builder.names):
            raise DataError(f"{subject} has the class value {value}, but there are {len(builder.names)} names.")
        builder.add_mask(value - 1, mask, subject)


def _instances(files: _Found, header: ImageHeader, findings: Findings) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Yield the masks of an image with their origin as text; warn of suspicious ones."""
    if not files.paths:
        findings.warn("empty-mask", _EMPTY, str(files.folder))
    for path in files.paths:
        values = read_values(path, header)
        refuse_soft_edges(path, values)
        present = np.unique(values[values > 0])
        if len(present) == 0:
            findings.warn("empty-mask", _EMPTY, str(path))
        if len(present) > 1 and not files.is_single:
            raise DataError(
                f"{path} has {len(present)} values, but a file in a folder of masks must be one instance; give a file "
                "of several instances the name of its image and move it out of the folder."
            )
        if files.is_single and len(present) > 1 and present[-1] == _VOID > len(present) == present[-2] + 1:
            findings.warn("value-255", _LIKE_UNLABELLED, str(path))
        for value in present:
            mask, subject = values == value, f"value {value} of {path}"
            if files.is_single and (parts := separate_parts(mask)) > 1:
                findings.warn("several-parts", _SEVERAL_PARTS, f"{subject} ({parts} parts)")
            if is_like_background(mask):
                findings.warn("like-background", _BACKGROUND, subject)
            yield mask, subject


def _class_values(kinds: _MaskFolder, path: Path, images: Path, header: ImageHeader) -> NDArray[np.int64]:
    files = kinds.of(key_of(path, images))
    if files is None or not files.is_single:
        raise DataError(f"{kinds.folder} must contain a file of class values for {path}, with the same name.")
    return read_values(files.paths[0], header)


def _most_frequent(values: NDArray[np.int64]) -> np.int64:
    present, counts = np.unique(values, return_counts=True)
    return np.int64(present[counts.argmax()])


def _nothing_found(images: Path, masks: Path, bare: Sequence[Path], unused: Sequence[Path]) -> str:
    place = masks / key_of(bare[0], images)
    held = some([path.relative_to(masks).as_posix() for path in unused]) if unused else "no file"
    return (
        f"{masks}: no mask was found for any of the {len(bare)} images (searched for {place}.png, {place}.tif "
        f"and the like, and {place}/*.png). The folder contains {held}; give each mask the name of its image."
    )


def _report_unmatched(
    findings: Findings, images: Path, masks: Path, bare: Sequence[Path], unused: Sequence[Path]
) -> None:
    """Warn of images without a mask. Refuse those with an unused mask of a similar name: a typo would lose it."""
    named: set[Path] = set()
    for path in bare:
        subject = show(path.relative_to(images).as_posix())
        near = [each for each in unused if _is_named_after(each, path)]
        named.update(near)
        if near:
            sentence = "no mask with the image's name, but one with a similar name exists; rename it."
            held = some([each.relative_to(masks).as_posix() for each in near])
            findings.refuse("mask-of-like-name", sentence, f"{subject} ({held})")
        else:
            findings.warn("no-mask", "no mask; used as background.", subject)
    for path in unused:
        if path not in named:
            sentence = "masks without an image; left out."
            findings.warn("no-image-of-mask", sentence, show(path.relative_to(masks).as_posix()))


def _is_named_after(mask: Path, image: Path) -> bool:
    """Tell whether a mask's name contains the image's as a word: for `1.jpg`, `1_mask.png` does, `11.png` does not."""
    stem = composed(image.stem).casefold()
    before, after = (r"\d" if edge.isdigit() else r"[^\W\d_]" for edge in (stem[:1], stem[-1:]))
    return re.search(f"(?<!{before}){re.escape(stem)}(?!{after})", composed(mask.stem).casefold()) is not None
