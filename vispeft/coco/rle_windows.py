"""Masks of a window of an image, as run lengths of the whole image; no bitmap of either is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.rle import compress, run_lengths


def moved_rle(rle: Mapping[str, Any], left: int, top: int, height: int, width: int) -> dict[str, Any]:
    """Return the mask of a window as a mask of the whole image, compressed.

    rle: of the window, which lies within the image
    left, top: first column and row of the window in the image
    height, width: of the image
    """
    window_height = int(rle["size"][0])
    starts, ends = _columns_of_runs(run_lengths(rle["counts"]), window_height)
    shift = left * height + top
    column = starts // window_height
    starts = starts + shift + column * (height - window_height)
    ends = ends + shift + column * (height - window_height)
    return {"size": [height, width], **_counts(starts, ends, height * width)}


def _columns_of_runs(runs: NDArray[np.int64], height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first pixel and one past the last of each run of the object, divided at the ends of columns."""
    ends = np.cumsum(runs)[1::2]
    starts = ends - runs[1::2]
    starts, ends = starts[starts < ends], ends[starts < ends]
    first, last = starts // height, (ends - 1) // height
    counts = last - first + 1
    run = np.repeat(np.arange(len(starts)), counts)
    column = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.maximum(starts[run], column * height), np.minimum(ends[run], (column + 1) * height)


def _counts(starts: NDArray[np.int64], ends: NDArray[np.int64], num_pixels: int) -> dict[str, Any]:
    """Return the counts of ascending runs; runs that touch become one."""
    is_apart = np.ones(len(starts), dtype=bool)
    is_apart[1:] = starts[1:] > ends[:-1]
    bounds = np.stack([starts[is_apart], ends[np.append(is_apart[1:], True)[: len(ends)]]], 1).reshape(-1)
    lengths = np.diff(bounds, prepend=0, append=num_pixels)
    if len(lengths) > 1 and lengths[-1] == 0:
        lengths = lengths[:-1]
    # the size does not count for the text of the counts
    return {"counts": compress({"size": [1, num_pixels], "counts": lengths.tolist()})["counts"]}
