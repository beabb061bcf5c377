"""Columns of COCO results: what scoring needs of many results, as arrays.

Results in the form that nearly all files have are decoded and checked in one pass. Results in any other form are read
and checked one by one, so that a fault has the same message in both cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vispeft.coco.results import checked_results, read_results
from vispeft.coco.values import LARGEST_ID
from vispeft.errors import DataError

# beyond, a whole number may have been an integer, which results must not have
_LARGEST_NUMBER = 2.0**63
# number of results that are taken apart together, so that they stay within a core's cache
_NUM_TOGETHER = 4096


class _Rle(msgspec.Struct, gc=False):
    """Compressed RLE of one result."""

    size: tuple[int, int]
    counts: str


class _Result(msgspec.Struct, gc=False):
    """One result with plain values: integer ids, a box of four numbers, a compressed RLE."""

    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: _Rle | None = None


_DECODER = msgspec.json.Decoder(list[_Result])


@dataclass(frozen=True)
class ResultColumns:
    """D checked results as columns.

    image_id, category_id: [D] int64
    score: [D] float64
    boxes: [D, 4] float64, x, y, width, height; None if the results are masks only
    sizes, counts: [D, 2] int64 and D texts of compressed RLEs, the text empty for a mask in another form; None if the
        results are boxes only
    others: segmentations in other forms, by index
    """

    image_id: NDArray[np.int64]
    category_id: NDArray[np.int64]
    score: NDArray[np.float64]
    boxes: NDArray[np.float64] | None
    sizes: NDArray[np.int64] | None
    counts: Sequence[str] | None
    others: Mapping[int, Any]

    def __len__(self) -> int:
        return len(self.score)


def read_columns(path: Path) -> ResultColumns:
    """Read and check the COCO results of a JSON file."""
    try:
        content = path.read_bytes()
        # what is not decoded is not checked for its encoding
        columns = _plain_columns(_DECODER.decode(content)) if content.isascii() else None
    # whatever is wrong, the other reader has the message
    except (OSError, ValueError, OverflowError, RecursionError):
        columns = None
    return columns_of(read_results(path)) if columns is None else columns


def to_columns(results: list[dict[str, Any]], source: str) -> ResultColumns:
    """Check a list of COCO results. source: for messages"""
    try:
        columns = _plain_columns(msgspec.convert(results, list[_Result]))
    except (ValueError, OverflowError):
        columns = None
    return columns_of(checked_results(results, source)) if columns is None else columns


def columns_of(results: Sequence[Mapping[str, Any]]) -> ResultColumns:
    """Return the columns of results that are checked already."""
    has_boxes, has_masks = (bool(results) and bool(results[0].get(key)) for key in ("bbox", "segmentation"))
    shapes = [result["segmentation"] for result in results] if has_masks else []
    is_plain = [_is_compressed(shape) for shape in shapes]
    pairs = list(zip(shapes, is_plain, strict=True))
    return ResultColumns(
        np.array([result["image_id"] for result in results], dtype=np.int64),
        np.array([result["category_id"] for result in results], dtype=np.int64),
        np.array([result["score"] for result in results], dtype=np.float64),
        np.array([result["bbox"] for result in results], dtype=np.float64) if has_boxes else None,
        np.array([shape["size"] if plain else (0, 0) for shape, plain in pairs], dtype=np.int64) if has_masks else None,
        [shape["counts"] if plain else "" for shape, plain in pairs] if has_masks else None,
        {index: shape for index, (shape, plain) in enumerate(pairs) if not plain},
    )


def indices_in(
    columns: ResultColumns, source: str, image_ids: Sequence[int], category_ids: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the results' images and categories, or raise a DataError for an unknown one: [D] each.

    image_ids, category_ids: of the annotations, ascending
    """
    image_idx, category_idx = _places(columns.image_id, image_ids), _places(columns.category_id, category_ids)
    for idx in np.flatnonzero((image_idx < 0) | (category_idx < 0))[:1].tolist():
        if image_idx[idx] < 0:
            raise DataError(
                f"`{source}`: result {idx} (counted from 0) is for image id {columns.image_id[idx]}, which the"
                " annotations do not have. Score the results on the annotations that they were predicted for."
            )
        known = ", ".join(str(category_id) for category_id in category_ids[:20])
        raise DataError(
            f"`{source}`: result {idx} (counted from 0) has category id {columns.category_id[idx]}, which the"
            f" annotations do not have (they have {known}). Results carry the annotations' own category ids."
        )
    return image_idx, category_idx


def _places(values: NDArray[np.int64], ids: Sequence[int]) -> NDArray[np.int64]:
    """Return the place of each value among ascending ids, or -1: [D]."""
    known = np.array(ids, dtype=np.int64)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[places] == values, places, -1)


def _plain_columns(results: list[_Result]) -> ResultColumns | None:
    """Return the columns of plain results, or None if they may be faulty."""
    number = len(results)
    has_boxes = bool(results) and results[0].bbox is not None
    has_masks = bool(results) and results[0].segmentation is not None
    if number and not has_boxes and not has_masks:
        return None
    image_id, category_id = np.empty(number, dtype=np.int64), np.empty(number, dtype=np.int64)
    score, boxes = np.empty(number), np.empty((number * has_boxes, 4))
    sizes, counts = np.empty((number * has_masks, 2), dtype=np.int64), []
    for start in range(0, number, _NUM_TOGETHER):
        some = results[start : start + _NUM_TOGETHER]
        part = slice(start, start + len(some))
        image_id[part] = [one.image_id for one in some]
        category_id[part] = [one.category_id for one in some]
        score[part] = [one.score for one in some]
        found = [one.bbox for one in some if one.bbox is not None]
        shapes = [one.segmentation for one in some if one.segmentation is not None]
        if len(found) != len(some) * has_boxes or len(shapes) != len(some) * has_masks:
            return None
        if has_boxes:
            boxes.reshape(-1)[4 * part.start : 4 * part.stop] = list(chain.from_iterable(found))
        if has_masks:
            sides = chain.from_iterable([shape.size for shape in shapes])
            sizes.reshape(-1)[2 * part.start : 2 * part.stop] = list(sides)
            counts += [shape.counts for shape in shapes]
    has_numbers = all((np.abs(column) < _LARGEST_NUMBER).all() for column in (score, boxes))
    has_ids = all((column >= -LARGEST_ID).all() for column in (image_id, category_id))
    if not has_numbers or not has_ids or (boxes[:, 2:] < 0).any():
        return None
    kept = boxes if has_boxes else None
    if not has_masks:
        return ResultColumns(image_id, category_id, score, kept, None, None, {})
    return ResultColumns(image_id, category_id, score, kept, sizes, counts, {})


def _is_compressed(shape: Any) -> bool:
    """Return True for a compressed RLE with a size; whether both fit the image is not checked here."""
    if not isinstance(shape, dict) or not isinstance(shape.get("counts"), str) or not shape["counts"]:
        return False
    size = shape.get("size")
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < 2**31 for side in size)
