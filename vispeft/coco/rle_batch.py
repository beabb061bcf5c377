"""Checks, mask areas and decoding of the run lengths of many compressed RLEs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.rle import CONTINUES, LARGEST_CODE, decode_columns, read_numbers

# characters decoded together: their arrays stay within a core's cache
_CHUNK = 2**18


@dataclass(frozen=True)
class Runs:
    """The run lengths of some masks, one mask after another; the first run of each is background.

    lengths: [R] int64
    begins: [N + 1] int64, offset of each mask in `lengths`
    """

    lengths: NDArray[np.int64]
    begins: NDArray[np.int64]

    def of(self, index: int) -> NDArray[np.int64]:
        """Return the run lengths of one mask."""
        return self.lengths[self.begins[index] : self.begins[index + 1]]


@dataclass(frozen=True)
class RleMeasures:
    """Measures of N masks in pixels, without meaning where `is_sound` is False.

    is_sound: [N] bool, True where an RLE describes exactly its number of pixels
    area: [N] float64
    begin, end: [N] int64, pixels between which the mask lies, counted down the columns; `end` is exclusive
    """

    is_sound: NDArray[np.bool_]
    area: NDArray[np.float64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]


def measure_rles(texts: Sequence[str], num_pixels: NDArray[np.int64]) -> RleMeasures:
    """Check the counts of compressed RLEs and measure their masks. num_pixels: [N], pixels of each RLE's image"""
    is_sound, area = np.zeros(len(texts), dtype=bool), np.zeros(len(texts))
    begin, end = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
    for chunk in _chunks(texts):
        part = texts[chunk]
        numbers, is_good = _read_numbers(part)
        if not is_good.all():  # seldom, and then others' numbers may have run into theirs
            numbers, _ = _read_numbers([text for text, good in zip(part, is_good, strict=True) if good])
        places = chunk.start + np.flatnonzero(is_good)
        if not len(places):
            continue
        chains = _add_up(numbers)
        totals = np.stack([np.add.reduceat(sums, starts)[:-1] for sums, starts in chains.rows])
        least = np.stack([np.minimum.reduceat(sums, starts)[:-1] for sums, starts in chains.rows])
        is_empty = chains.count == 0
        background, foreground = np.where(is_empty, 0, totals - chains.count * chains.before)[chains.by_role]
        lowest = np.where(is_empty, 0, least - chains.before).min(axis=0)
        total = chains.first + background + foreground
        is_sound[places] = (total == num_pixels[places]) & (lowest >= 0) & (chains.first >= 0)
        area[places], begin[places], end[places] = foreground, chains.first, total - chains.trailing()
    return RleMeasures(is_sound, area, begin, end)


def decode_rles(texts: Sequence[str]) -> Runs:
    """Return the run lengths of RLEs that are known to be valid."""
    numbers, _ = _read_numbers(texts)
    chains = _add_up(numbers)
    lengths = np.stack([sums for sums, _ in chains.rows], axis=1).ravel()[: len(numbers.values)]
    counts = np.diff(numbers.begins)
    for row in (0, 1):
        before = np.repeat(chains.before[row], counts)
        lengths[row::2] -= before[row::2]
    lengths[numbers.begins[:-1]] = chains.first
    return Runs(lengths, numbers.begins)


def decode_region(lengths: NDArray[np.int64], box: tuple[int, int, int, int], height: int) -> NDArray[np.uint8]:
    """Decode a mask within a box that contains all of it: [box height, box width], 0 or 1.

    lengths: the mask's run lengths; box: left, top, width and height in pixels; height: of the whole mask in pixels
    """
    left, top, box_width, box_height = box
    columns = decode_columns(lengths, height, left, left + box_width)
    return np.ascontiguousarray(columns[top : top + box_height])


@dataclass(frozen=True)
class _Numbers:
    """The numbers of N texts. values: [R] int64; begins: [N + 1] int64, offset of each text's first number"""

    values: NDArray[np.int64]
    begins: NDArray[np.int64]


@dataclass(frozen=True)
class _Chains:
    """Run lengths as running sums: COCO writes differences to two runs before, from the fourth run on.

    Numbers at even and at odd places of all texts are summed in two rows. A text's runs 0, 2, 4, ... (background)
    lie in one of them, its runs 1, 3, 5, ... (foreground) in the other, and run lengths are differences to the sums
    before the text. Run 0 is no start of the differences and is kept separately; its own difference is 0.

    rows: for each row, the sums (with some zeros at the end), and the offset of each text in them: [N + 1] int64
    before: [2, N] int64, what to subtract from the sums of each text
    count: [2, N] int64, number of each text's sums
    first: [N] int64, the first run
    by_role: index that makes the background row 0 and the foreground row 1
    """

    rows: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    before: NDArray[np.int64]
    count: NDArray[np.int64]
    first: NDArray[np.int64]
    by_role: tuple[NDArray[np.int64], NDArray[np.int64]]

    def trailing(self) -> NDArray[np.int64]:
        """Return the length of the background after the last foreground run: [N]."""
        lasts = np.stack([sums[np.maximum(starts[1:] - 1, 0)] for sums, starts in self.rows]) - self.before
        background, foreground = self.count[self.by_role]
        return np.where(background > foreground, lasts[self.by_role][0], 0)


def _read_numbers(texts: Sequence[str]) -> tuple[_Numbers, NDArray[np.bool_]]:
    """Return the numbers of N texts, and for each text whether it has whole numbers in COCO's characters alone: [N]."""
    joined = "".join(texts)
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    is_good = sizes > 0
    if not joined.isascii():
        is_good &= np.fromiter((text.isascii() for text in texts), dtype=bool, count=len(texts))
        joined = "".join([text for text in texts if text.isascii()])
    text_ends = np.cumsum(np.where(is_good, sizes, 0))
    found = read_numbers(joined.encode("ascii"))
    is_good[is_good] = found.codes[text_ends[is_good] - 1] < CONTINUES
    if len(found.too_long) or found.codes.max(initial=0) > LARGEST_CODE:
        bad = np.concatenate([np.flatnonzero(found.codes > LARGEST_CODE), found.too_long])
        is_good[np.searchsorted(text_ends, bad, side="right")] = False
    ends = np.searchsorted(found.lasts, text_ends)
    return _Numbers(found.values, np.concatenate([np.zeros(1, dtype=np.int64), ends])), is_good


def _add_up(numbers: _Numbers) -> _Chains:
    """Return the run lengths of the numbers of each text; every text has at least one."""
    begins, first = numbers.begins, numbers.values[numbers.begins[:-1]]
    sums = [np.zeros(len(numbers.values) // 2 + 2, dtype=np.int64) for _ in range(2)]
    for row, one in enumerate(sums):
        some = numbers.values[row::2]
        np.cumsum(some, out=one[: len(some)])
    starts = [(begins + 1 - row) // 2 for row in (0, 1)]
    before = np.stack([np.where(s > 0, sums[row][s - 1], 0) for row, s in enumerate(s[:-1] for s in starts)])
    text, background = np.arange(len(first)), begins[:-1] % 2
    before[background, text] += first
    by_role = np.stack([background, 1 - background]), np.stack([text, text])
    return _Chains(
        tuple(zip(sums, starts, strict=True)), before, np.stack([np.diff(s) for s in starts]), first, by_role
    )


def _chunks(texts: Sequence[str]) -> list[slice]:
    """Return slices of the texts of about `_CHUNK` characters each."""
    if not texts:
        return []
    if sum(map(len, texts)) <= _CHUNK:
        return [slice(0, len(texts))]
    ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
    cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1] + _CHUNK, _CHUNK))
    bounds = np.unique(np.concatenate([[0], np.minimum(cuts + 1, len(texts))]))
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]
