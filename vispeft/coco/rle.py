"""COCO run-length encoding (RLE): written from a region, checked, and decoded.

Foreign input is checked before pycocotools reads it, for pycocotools does not: counts that do not add up to the image,
or a polygon a million pixels wide, end in a crash or in an endless allocation rather than in an exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.values import is_integer, is_number

LARGEST_CODE = 63
"""Code of the last character that COCO uses."""

CONTINUES = 32
"""Code from which on a number goes on in the next character."""

LARGEST_WIDTH = 7
"""Characters of the longest number that is read: 35 bits."""

LARGEST_MASK = 2**32 - 1
"""Pixels of the largest mask whose runs COCO's format can count."""

LARGEST_OUTLINE = 2e6
"""Pixels of the longest outline of a polygon: 5 points of 16 bytes each cost pycocotools some 160 MB."""


def encode_region(region: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """Encode a mask [height, width] that is false outside of one rectangle, without building the whole mask.

    region: [h, w] bool, whose first pixel lies at row `top` and column `left` of the mask
    """
    (rle,) = encode_regions(region.T[None], np.array([top]), np.array([left]), height, width)
    return rle


def encode_regions(
    regions: NDArray[np.bool_], tops: NDArray[np.int64], lefts: NDArray[np.int64], height: int, width: int
) -> list[dict[str, Any]]:
    """Encode masks [height, width] that are false outside of one rectangle each, without building the whole masks.

    regions: [N, w, h] bool, columns first, whose pixels outside of the mask are false
    tops, lefts: [N], row and column of each region's first pixel
    """
    num_masks, num_columns, num_rows = regions.shape
    framed = np.zeros((num_masks, num_columns, num_rows + 2), dtype=bool)
    framed[:, :, 1:-1] = regions
    flat = framed.ravel()
    line, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), num_rows + 2)
    mask, column = np.divmod(line, max(num_columns, 1))
    bounds = (lefts[mask] + column) * height + tops[mask] + row  # where runs start and end, in turn
    is_kept = np.ones(len(bounds), dtype=bool)
    # a run that goes on at the top of the next column is one run
    is_kept[1:-1] = np.repeat((bounds[1:-1:2] != bounds[2:-1:2]) | (mask[1:-1:2] != mask[2:-1:2]), 2)
    bounds, sizes = bounds[is_kept], np.bincount(mask[is_kept], minlength=num_masks)
    ends = np.cumsum(sizes)
    starts, has_runs = ends - sizes, sizes > 0
    counts = np.diff(bounds, prepend=0)
    counts[starts[has_runs]] = bounds[starts[has_runs]]
    rest = np.full(num_masks, height * width)
    rest[has_runs] -= bounds[ends[has_runs] - 1]
    numbers, size = counts.tolist(), [height, width]
    runs = [
        [*numbers[start:end], last] if last else numbers[start:end]
        for start, end, last in zip(starts.tolist(), ends.tolist(), rest.tolist(), strict=True)
    ]
    return [compress({"size": size, "counts": some}) for some in runs]


def compress(rle: dict[str, Any]) -> dict[str, Any]:
    """Return the mask with its counts as an ASCII string, fit for JSON. rle: already checked, compressed or not."""
    height, width = rle["size"]
    counts = rle["counts"]
    if isinstance(counts, list):
        counts = mask_utils.frPyObjects(rle, height, width)["counts"]
    return {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def boxes_of(rles: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """Return the boxes that enclose masks, [N, 4] xyxy in pixels; zeros for an empty mask. rles: compressed"""
    boxes = np.asarray(mask_utils.toBbox(list(rles)), dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return the compressed RLE of a COCO segmentation: polygons, counts as a list, or counts as a string.

    Raises ValueError with the reason if pycocotools could crash on it; the caller adds the place.
    """
    if isinstance(segmentation, dict):
        check_rle(segmentation, height, width)
        return compress(segmentation)
    check_polygons(segmentation)
    try:
        merged = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    except Exception as error:
        raise ValueError(f"with polygons that pycocotools cannot read ({error})") from error
    return compress(merged)


def check_polygons(polygons: Any) -> None:
    """Raise ValueError with the reason if a segmentation is not a list of polygons of sane size."""
    if not isinstance(polygons, list) or not polygons or not all(isinstance(polygon, list) for polygon in polygons):
        raise ValueError("with a segmentation that is neither an RLE nor a list of polygons")
    if len(polygons[0]) == 4:  # pycocotools takes it for a box, and fails
        raise ValueError("with a polygon of two points")
    for polygon in polygons:
        if len(polygon) < 4 or len(polygon) % 2 or not all(is_number(value) for value in polygon):
            raise ValueError(
                "with a polygon that is not a list of at least two points x1, y1, x2, y2 in finite numbers"
            )
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        outline = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
        if outline > LARGEST_OUTLINE or np.abs(points).max() > LARGEST_OUTLINE:
            raise ValueError(f"with a polygon whose outline is {outline:.3g} pixels long")


def check_rle(rle: dict[str, Any], height: int, width: int) -> None:
    """Raise ValueError with the reason if an RLE does not describe exactly `height` x `width` pixels."""
    size = size_of(rle)
    if size != (height, width):
        raise ValueError(f"with an RLE of size {size[0]}x{size[1]} for an image of {height}x{width} (height x width)")
    check_counts(rle.get("counts"), height * width)


def size_of(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Return the height and width of an RLE, or raise ValueError with the reason if they are not positive integers."""
    size = rle.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(is_integer(side) and side > 0 for side in size):
        raise ValueError("with an RLE that has no `size` [height, width]")
    return size[0], size[1]


def check_counts(counts: Any, num_pixels: int) -> None:
    """Raise ValueError with the reason if RLE counts do not cover exactly `num_pixels`."""
    if num_pixels > LARGEST_MASK:
        raise ValueError("with an RLE of more pixels than COCO's format can count")
    runs = run_lengths(counts)
    if (runs < 0).any() or int(runs.sum()) != num_pixels:
        raise ValueError(f"with RLE counts that do not add up to the {num_pixels} pixels of its size")


def run_lengths(counts: Any) -> NDArray[np.int64]:
    """Return the run lengths of RLE counts, which are compressed text or a list of integers: [R].

    Raises ValueError with the reason for other values. The lengths may be negative, and their sum is not checked.
    """
    if isinstance(counts, (str, bytes)):
        return _decode_counts(counts.encode("utf-8", "replace") if isinstance(counts, str) else counts)
    if isinstance(counts, list) and all(is_integer(count) and abs(count) <= LARGEST_MASK for count in counts):
        return np.asarray(counts, dtype=np.int64)
    raise ValueError("with an RLE that has no `counts`, as a string or as a list of integers")


class Numbers(NamedTuple):
    """The numbers in compressed counts, which are written with 5 bits per character.

    values: [R] int64
    codes: [C] uint8, characters less 48; above LARGEST_CODE where COCO does not use the character
    lasts: [R] int64, ascending index of each number's last character
    too_long: [L] int64, index of a character in each number of more than LARGEST_WIDTH characters
    """

    values: NDArray[np.int64]
    codes: NDArray[np.uint8]
    lasts: NDArray[np.int64]
    too_long: NDArray[np.int64]


def read_numbers(text: bytes) -> Numbers:
    """Return the numbers in the compressed counts of one RLE, or of several that follow each other.

    A number's lowest bits come first. All its characters but the last are marked by 32; the highest bit of the last is
    the sign (cocoapi, `maskApi.c`, `rleFrString`). Most numbers have one character.
    """
    # characters below 48 wrap to large codes
    codes = np.frombuffer(text, dtype=np.uint8) - np.uint8(48)
    is_last = codes < CONTINUES
    digits = ((codes << 3).view(np.int8) >> 3).astype(np.int16)  # five bits with their sign
    # numbers of two characters, over all characters at once: few have more
    digits[1:] += (digits[1:] * 31 + (codes[:-1] & 31)) * ~is_last[:-1]
    lasts = np.flatnonzero(is_last)
    values = digits.take(lasts).astype(np.int64)
    last = np.flatnonzero(is_last[2:] & ~is_last[1:-1] & ~is_last[:-2]) + 2
    number = np.searchsorted(lasts, last)
    for place in range(2, LARGEST_WIDTH):
        if not len(last):
            break
        values[number] = values[number] * 32 + (codes[last - place] & 31)
        goes_on = np.flatnonzero((last > place) & ~is_last[last - place - 1])
        last, number = last[goes_on], number[goes_on]
    return Numbers(values, codes, lasts, last - LARGEST_WIDTH)


def _decode_counts(text: bytes) -> NDArray[np.int64]:
    """Return the run lengths of compressed counts: [R].

    From the fourth run on, a number is the difference to the run two places before.
    """
    numbers = read_numbers(text)
    if not len(text) or numbers.codes.max() > LARGEST_CODE:
        raise ValueError("with RLE `counts` in characters that COCO does not use")
    if numbers.codes[-1] >= CONTINUES:
        raise ValueError("with RLE `counts` that are cut off")
    if len(numbers.too_long):
        raise ValueError("with a number in its RLE `counts` that is too large")
    values = numbers.values
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def decode_columns(lengths: NDArray[np.int64], height: int, left: int, right: int) -> NDArray[np.uint8]:
    """Return the columns `left` to `right` (exclusive) of a mask: [height, right - left], 0 or 1.

    lengths: [R], valid run lengths of the mask, whose height is `height` pixels
    """
    first, last = left * height, right * height
    ends = np.clip(np.cumsum(lengths), first, last)
    values = (np.arange(len(lengths)) & 1).astype(np.uint8)
    return np.repeat(values, np.diff(ends, prepend=first)).reshape(right - left, height).T
