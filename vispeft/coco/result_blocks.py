"""COCO results in the form that nearly all files have, decoded in blocks that stay within a core's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

# bytes of a file that are decoded together
_BLOCK = 2**18
# number of results of a list that are converted together
_NUM_TOGETHER = 1024
# bytes before a brace in which the preceding character other than white space is looked for
_MARGIN = 64


class PlainRle(msgspec.Struct, gc=False):
    """Compressed RLE of one result."""

    size: tuple[int, int]
    counts: str


class PlainResult(msgspec.Struct, gc=False):
    """One result with plain values: integer ids, a box of four numbers, a compressed RLE."""

    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: PlainRle | None = None


_DECODER = msgspec.json.Decoder(list[PlainResult])


def blocks_of_file(path: Path) -> Iterator[list[PlainResult]]:
    """Yield the results of a JSON file in order, some at a time; raise ValueError or OSError if they are not plain.

    A block ends at a comma that an opening brace follows. If the comma does not separate two results, but lies within
    one of them or within text, the block is no valid list and its decoding fails. A file is thus read as a whole list
    or not at all.
    """
    with path.open("rb") as file:
        pending = file.read(_BLOCK).lstrip()
        if not pending.startswith(b"["):
            raise ValueError("no list")
        pending, wanted = pending[1:], _BLOCK
        while more := file.read(wanted):
            pending += more
            comma = _last_separator(pending)
            if comma < 0:  # a result that is larger than a block
                wanted *= 2
                continue
            block = _decoded(b"[" + pending[:comma] + b"]")
            if not block:
                raise ValueError("a comma without a result before it")
            yield block
            pending = pending[comma + 1 :]
        yield _decoded(b"[" + pending)


def blocks_of_list(results: list[dict[str, Any]]) -> Iterator[list[PlainResult]]:
    """Yield the results of a list in order, some at a time; raise ValueError if they are not plain.

    As with a file, there is at least one block, which is empty if the list is.
    """
    for start in range(0, max(len(results), 1), _NUM_TOGETHER):
        yield msgspec.convert(results[start : start + _NUM_TOGETHER], list[PlainResult])


def _last_separator(content: bytes) -> int:
    """Return the index of the last comma that an opening brace follows, or -1."""
    brace = content.rfind(b"{")
    while brace >= 0:
        before = content[max(brace - _MARGIN, 0) : brace].rstrip()
        if before.endswith(b","):
            return max(brace - _MARGIN, 0) + len(before) - 1
        brace = content.rfind(b"{", 0, brace)
    return -1


def _decoded(block: bytes) -> list[PlainResult]:
    if not block.isascii():  # what is not decoded is not checked for its encoding
        raise ValueError("characters beyond ASCII")
    return _DECODER.decode(block)
