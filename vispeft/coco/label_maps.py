"""Label maps, in which every pixel has one value, to and from run lengths of each value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.rle import compress, decode_columns, run_lengths

IdArray = NDArray[np.int64]

VOID = 0
"""Value of pixels that belong to no segment."""


def runs_of_map(values: NDArray[Any], void: int | None = VOID) -> dict[int, IdArray]:
    """Return COCO run lengths of each value of a map: other values, value, other values, ... by columns.

    values: [height, width], integers
    void: the value that is left out; None: none is
    """
    flat = values.T.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    labels = flat[starts]
    order = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[order], return_index=True)
    found = {}
    for label, places in zip(present.tolist(), np.split(order, first[1:]), strict=True):
        if label == void:
            continue
        bounds = np.stack([starts[places], ends[places]], 1).reshape(-1)
        runs = np.diff(bounds, prepend=0, append=flat.size)
        found[label] = runs[:-1] if runs[-1] == 0 else runs
    return found


def rles_of_map(values: NDArray[Any]) -> dict[int, dict[str, Any]]:
    """Return the compressed RLE of each value of a map but `VOID`. values: [height, width], integers"""
    size = list(values.shape)
    return {label: compress({"size": size, "counts": runs.tolist()}) for label, runs in runs_of_map(values).items()}


def mask_of(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the pixels of a mask: [height, width] bool. rle: checked, compressed or not"""
    height, width = rle["size"]
    return decode_columns(run_lengths(rle["counts"]), height, 0, width).astype(bool)


def paint(values: IdArray, mask: NDArray[np.bool_], value: int) -> None:
    """Set the pixels of a mask that are still `VOID` to a value, in place: the first mask keeps a pixel."""
    values[mask & (values == VOID)] = value


def id_of_colour(pixels: NDArray[Any]) -> IdArray:
    """Return the segment ids of a panoptic PNG: R + 256 G + 65536 B. pixels: [H, W, 3] or more; returns [H, W]"""
    channels = pixels[:, :, :3].astype(np.int64)
    return np.asarray(channels @ np.array([1, 256, 65536]))


def colour_of_id(values: IdArray) -> NDArray[np.uint8]:
    """Return the pixels of a panoptic PNG, [H, W, 3], of segment ids [H, W] below 2**24."""
    return np.stack([(values >> shift) & 255 for shift in (0, 8, 16)], 2).astype(np.uint8)
