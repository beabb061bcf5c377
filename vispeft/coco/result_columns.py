"""Columns of COCO results: what scoring needs of many results, as arrays.

Results in the form that nearly all files have are decoded and checked in one pass. Results in any other form are read
and checked one by one, so that a fault has the same message in both cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.masks import Masks, concatenated_masks, measured_masks
from vispeft.coco.result_blocks import PlainResult, blocks_of_file, blocks_of_list
from vispeft.coco.results import checked_results, read_results
from vispeft.coco.values import LARGEST_ID
from vispeft.errors import DataError

# beyond, a whole number may have been an integer, which results must not have
_LARGEST_NUMBER = 2.0**63


@dataclass(frozen=True)
class ResultColumns:
    """D checked results as columns.

    image_id, category_id: [D] int64
    score: [D] float64
    boxes: [D, 4] float64, x, y, width, height; None if the results are masks only
    masks: compressed RLEs as in the file, an empty text for a mask in another form; None if the results are boxes only
    others: segmentations in other forms, by index
    """

    image_id: NDArray[np.int64]
    category_id: NDArray[np.int64]
    score: NDArray[np.float64]
    boxes: NDArray[np.float64] | None
    masks: Masks | None
    others: Mapping[int, Any]

    def __len__(self) -> int:
        return len(self.score)


def read_columns(path: Path) -> ResultColumns:
    """Read and check the COCO results of a JSON file."""
    try:
        columns = _plain_columns(blocks_of_file(path))
    # whatever is wrong, the other reader has the message
    except (OSError, ValueError, OverflowError, RecursionError):
        columns = None
    return columns_of(read_results(path)) if columns is None else columns


def to_columns(results: list[dict[str, Any]], source: str) -> ResultColumns:
    """Check a list of COCO results. source: for messages"""
    try:
        columns = _plain_columns(blocks_of_list(results))
    except (ValueError, OverflowError):
        columns = None
    return columns_of(checked_results(results, source)) if columns is None else columns


def columns_of(results: Sequence[Mapping[str, Any]]) -> ResultColumns:
    """Return the columns of results that are checked already."""
    has_boxes, has_masks = (bool(results) and bool(results[0].get(key)) for key in ("bbox", "segmentation"))
    shapes = [result["segmentation"] for result in results] if has_masks else []
    is_plain = [_is_compressed(shape) for shape in shapes]
    pairs = list(zip(shapes, is_plain, strict=True))
    sizes = np.array([shape["size"] if plain else (0, 0) for shape, plain in pairs], dtype=np.int64).reshape(-1, 2)
    return ResultColumns(
        np.array([result["image_id"] for result in results], dtype=np.int64),
        np.array([result["category_id"] for result in results], dtype=np.int64),
        np.array([result["score"] for result in results], dtype=np.float64),
        np.array([result["bbox"] for result in results], dtype=np.float64) if has_boxes else None,
        measured_masks(sizes, [shape["counts"] if plain else "" for shape, plain in pairs]) if has_masks else None,
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


def _plain_columns(blocks: Iterable[list[PlainResult]]) -> ResultColumns | None:
    """Return the columns of plain results, or None if they may be faulty."""
    parts: list[ResultColumns] = []
    for results in blocks:
        part = _columns_of_block(results)
        if part is None or (parts and _kinds(part) != _kinds(parts[0])):
            return None
        parts.append(part)
    boxes = [part.boxes for part in parts if part.boxes is not None]
    masks = [part.masks for part in parts if part.masks is not None]
    return ResultColumns(
        np.concatenate([part.image_id for part in parts]),
        np.concatenate([part.category_id for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate(boxes) if boxes else None,
        concatenated_masks(masks) if masks else None,
        {},
    )


def _columns_of_block(results: list[PlainResult]) -> ResultColumns | None:
    """Return the columns of some plain results, or None if they may be faulty."""
    number = len(results)
    found = [one.bbox for one in results if one.bbox is not None]
    shapes = [one.segmentation for one in results if one.segmentation is not None]
    if not {len(found), len(shapes)} <= {0, number} or (number and not found and not shapes):
        return None
    image_id = np.array([one.image_id for one in results], dtype=np.int64)
    category_id = np.array([one.category_id for one in results], dtype=np.int64)
    score = np.array([one.score for one in results], dtype=np.float64)
    boxes = np.fromiter(chain.from_iterable(found), np.float64, 4 * len(found)).reshape(-1, 4)
    has_numbers = all((np.abs(column) < _LARGEST_NUMBER).all() for column in (score, boxes))
    has_ids = all((column >= -LARGEST_ID).all() for column in (image_id, category_id))
    if not has_numbers or not has_ids or (boxes[:, 2:] < 0).any():
        return None
    sizes = np.fromiter(chain.from_iterable([shape.size for shape in shapes]), np.int64, 2 * len(shapes)).reshape(-1, 2)
    masks = measured_masks(sizes, [shape.counts for shape in shapes]) if shapes else None
    return ResultColumns(image_id, category_id, score, boxes if found else None, masks, {})


def _kinds(columns: ResultColumns) -> tuple[bool, bool]:
    """Return True for boxes and for masks if the results have them."""
    return columns.boxes is not None, columns.masks is not None


def _is_compressed(shape: Any) -> bool:
    """Return True for a compressed RLE with a size; whether both fit the image is not checked here."""
    if not isinstance(shape, dict) or not isinstance(shape.get("counts"), str) or not shape["counts"]:
        return False
    size = shape.get("size")
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < 2**31 for side in size)
