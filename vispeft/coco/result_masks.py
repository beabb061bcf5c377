"""Masks of COCO results, checked against the sizes of their images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.masks import Masks, measured_masks
from vispeft.coco.result_columns import ResultColumns
from vispeft.coco.rle import to_rle
from vispeft.coco.segmentation_forms import SENTENCES, holds_relative, normalise_segmentation
from vispeft.errors import DataError


def result_masks(columns: ResultColumns, source: str, sizes: NDArray[np.int64]) -> Masks:
    """Return the masks of results that have masks, or raise a DataError.

    sizes: [D, 2] int64, height and width of each result's image
    """
    masks = columns.masks
    if masks is None:
        raise ValueError("Results without masks have no mask pass.")
    if any(isinstance(shape, list) for shape in columns.others.values()) and holds_relative(columns.others.values()):
        raise DataError(f"`{source}`: the results cannot be scored: {SENTENCES['relative-coordinates']}.")
    is_plain = masks.measures.is_sound & (masks.sizes == sizes).all(axis=1)
    if is_plain.all():
        return masks
    counts = list(masks.texts)
    for index in np.flatnonzero(~is_plain).tolist():
        shape = columns.others.get(index, {"size": masks.sizes[index].tolist(), "counts": counts[index]})
        where = f"`{source}`: result {index} (counted from 0), for image id {columns.image_id[index]}"
        counts[index] = _compressed(shape, where, sizes[index].tolist())
    return measured_masks(sizes, counts)


def _compressed(shape: Any, where: str, size: list[int]) -> str:
    """Return the compressed counts of a mask in any form that COCO has. where: for messages"""
    straight = normalise_segmentation(shape)
    if straight.forms:
        reasons = "; ".join(SENTENCES[form] for form in straight.forms)
        raise DataError(f"{where}, cannot be scored: {reasons}.")
    try:
        return str(to_rle(straight.value, *size)["counts"])
    except ValueError as error:
        raise DataError(f"{where}, cannot be scored: it comes {error}.") from error
