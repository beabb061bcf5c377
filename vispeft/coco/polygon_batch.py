"""Masks of many annotations that are plain polygons, encoded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.rle import LARGEST_OUTLINE, compress
from vispeft.coco.segmentation_forms import normalise_segmentation


def polygon_rles(segmentations: Sequence[Any], sizes: Sequence[tuple[int, int] | None]) -> dict[int, dict[str, Any]]:
    """Return the compressed RLE of each segmentation that is a list of sound polygons, by index.

    A polygon is sound if it has at least three points in finite numbers, and an outline of sane length. All others, and
    all if one has values that are no numbers, are left to `to_rle`, which has the reason.

    sizes: height and width of each image; None for an unknown image
    """
    chosen = [
        index for index, (one, size) in enumerate(zip(segmentations, sizes, strict=True)) if size and _is_flat(one)
    ]
    polygons = list(chain.from_iterable(segmentations[index] for index in chosen))
    if not set(map(type, chain.from_iterable(polygons))) <= {int, float}:
        return {}
    lengths = np.fromiter(map(len, polygons), dtype=np.int64, count=len(polygons))
    try:
        coordinates = np.fromiter(chain.from_iterable(polygons), dtype=np.float64, count=lengths.sum())
    except OverflowError:
        return {}
    is_sound = _have_sane_outlines(coordinates, lengths)
    ends = np.cumsum(lengths).tolist()
    arrays = [coordinates[start:end] for start, end in pairwise([0, *ends])]
    by_size: dict[tuple[int, int], dict[int, list[NDArray[np.float64]]]] = {}
    first = 0
    for index in chosen:
        last = first + len(segmentations[index])
        if is_sound[first] if last - first == 1 else is_sound[first:last].all():
            by_size.setdefault(sizes[index] or (0, 0), {})[index] = arrays[first:last]
        first = last
    return _encoded(by_size)


def _is_flat(segmentation: Any) -> bool:
    """Return True for a list of lists of at least three points that is no dense mask."""
    if not isinstance(segmentation, list) or not segmentation:
        return False
    for part in segmentation:
        if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
            return False
    return len(segmentation) < 3 or not normalise_segmentation(segmentation).forms


def _have_sane_outlines(numbers: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each polygon whether its numbers are finite and its outline is no longer than the limit.

    numbers: x1, y1, x2, y2, ... of all polygons; lengths: count of each polygon's numbers
    """
    if not len(lengths):
        return np.zeros(0, dtype=bool)
    points = numbers.reshape(-1, 2)
    starts = (np.cumsum(lengths) - lengths) // 2
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.empty_like(points)
        steps[:-1] = points[1:] - points[:-1]
        ends = np.append(starts[1:], len(points)) - 1
        steps[ends] = points[starts] - points[ends]
        outline = np.add.reduceat(np.abs(steps).max(axis=1), starts)
        farthest = np.maximum.reduceat(np.abs(points).max(axis=1), starts)
    sane: NDArray[np.bool_] = (outline <= LARGEST_OUTLINE) & (farthest <= LARGEST_OUTLINE)
    return sane


def _encoded(by_size: Mapping[tuple[int, int], Mapping[int, list[NDArray[np.float64]]]]) -> dict[int, dict[str, Any]]:
    """Return the RLE of each segmentation by index. by_size: polygons by index, by height and width"""
    found: dict[int, dict[str, Any]] = {}
    for size, polygons in by_size.items():
        rles = iter(mask_utils.frPyObjects(list(chain.from_iterable(polygons.values())), *size))
        for index, some in polygons.items():
            parts = [next(rles) for _ in some]
            found[index] = compress(parts[0] if len(parts) == 1 else mask_utils.merge(parts))
    return found
