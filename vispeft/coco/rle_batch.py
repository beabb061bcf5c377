"""Checks, mask areas and decoding of the run lengths of many compressed RLEs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.rle import CONTINUES, LARGEST_CODE, LARGEST_WIDTH, decode_columns, read_numbers

# characters decoded together: their arrays stay within a core's cache
_CHUNK = 2**16


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


def measure_rles(texts: Sequence[str], num_pixels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return for each RLE whether it describes exactly its number of pixels, and the area of its mask, each [N].

    num_pixels: [N]
    """
    is_sound, areas = np.zeros(len(texts), dtype=bool), np.zeros(len(texts))
    for chunk in _chunks(texts):
        part = texts[chunk]
        numbers, is_good = _read_numbers(part)
        if not is_good.all():  # seldom, and then others' numbers may have run into theirs
            numbers, _ = _read_numbers([text for text, good in zip(part, is_good, strict=True) if good])
        places = chunk.start + np.flatnonzero(is_good)
        if not len(places):
            continue
        chains = _add_up(numbers)
        totals = np.add.reduceat(chains.sums, chains.begins, axis=1) - chains.before * chains.rows
        totals[1] -= np.where(chains.is_padded, (chains.sums[1, chains.begins + chains.rows - 1] - chains.before[1]), 0)
        least = (np.minimum.reduceat(chains.sums, chains.begins, axis=1) - chains.before).min(axis=0)
        total = chains.first + totals.sum(axis=0)
        is_sound[places] = (total == num_pixels[places]) & (least >= 0) & (chains.first >= 0)
        areas[places] = totals[1]
    return is_sound, areas


def decode_rles(texts: Sequence[str]) -> Runs:
    """Return the run lengths of RLEs that are known to be valid."""
    numbers, _ = _read_numbers(texts)
    chains = _add_up(numbers)
    lengths = chains.sums - np.repeat(chains.before, chains.rows, axis=1)
    lengths[0, chains.begins] = chains.first
    return Runs(lengths.ravel()[chains.place], numbers.begins)


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

    Every text has a chain of its runs 0, 2, 4, ... (without the first, which is kept separately) and one of its runs
    1, 3, 5, ...; the chains of all texts follow each other in two rows of M elements.

    sums: [2, M] int64, running over all texts
    before: [2, N] int64, the sums of all earlier texts
    first: [N] int64, the first run
    begins, rows: [N] int64, offset of each text's chains, and their length
    is_padded: [N] bool, True where the last element of the second chain is padding
    place: [R] int64, index of each number in the flat sums
    """

    sums: NDArray[np.int64]
    before: NDArray[np.int64]
    first: NDArray[np.int64]
    begins: NDArray[np.int64]
    rows: NDArray[np.int64]
    is_padded: NDArray[np.bool_]
    place: NDArray[np.int64]


def _read_numbers(texts: Sequence[str]) -> tuple[_Numbers, NDArray[np.bool_]]:
    """Return the numbers of N texts, and for each text whether it has whole numbers in COCO's characters alone: [N]."""
    is_good = np.fromiter((text.isascii() and len(text) > 0 for text in texts), dtype=bool, count=len(texts))
    sizes = np.where(is_good, np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)), 0)
    joined = "".join(texts if is_good.all() else [text for text in texts if text.isascii()])
    found = read_numbers(joined.encode("ascii"))
    text_ends = np.cumsum(sizes)
    too_long = found.widths > LARGEST_WIDTH
    bad = [np.flatnonzero(found.codes > LARGEST_CODE), (found.ends - found.widths + 1)[too_long]]
    is_good[is_good] = found.codes[text_ends[is_good] - 1] < CONTINUES
    is_good[np.searchsorted(text_ends, np.concatenate(bad), side="right")] = False
    begins = np.concatenate([np.zeros(1, dtype=np.int64), np.searchsorted(found.ends, text_ends)])
    return _Numbers(found.values, begins), is_good


def _add_up(numbers: _Numbers) -> _Chains:
    """Return the run lengths of the numbers of each text; every text has at least one."""
    starts, counts = numbers.begins[:-1], np.diff(numbers.begins)
    rows = (counts + 1) // 2
    begins = np.cumsum(rows) - rows
    width = int(rows.sum())
    padded = np.arange(len(numbers.values)) + np.repeat(2 * begins - starts, counts)
    place = (padded >> 1) + (padded & 1) * width
    steps = np.zeros(2 * width, dtype=np.int64)
    steps[place] = numbers.values
    steps[begins] = 0
    sums = np.cumsum(steps.reshape(2, width), axis=1)
    before = np.where(begins > 0, sums[:, begins - 1], 0)
    return _Chains(sums, before, numbers.values[starts], begins, rows, counts % 2 == 1, place)


def _chunks(texts: Sequence[str]) -> list[slice]:
    """Return slices of the texts of about `_CHUNK` characters each."""
    ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
    if not len(ends):
        return []
    cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1] + _CHUNK, _CHUNK))
    bounds = np.unique(np.concatenate([[0], np.minimum(cuts + 1, len(texts))]))
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]
