"""Numbers out of JSON that may hold anything: strings, null, lists, NaN, huge integers, booleans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Set
from typing import Any

LARGEST_ID = 2**63 - 1


def new_ids(used: Set[int]) -> Iterator[int]:
    """Positive integers that are not in use: those above all others, as far as 64 bits go."""
    above = range(max(0, *used, 0) + 1, LARGEST_ID + 1)
    return itertools.chain(above, (number for number in itertools.count(1) if number not in used))


def as_number(value: Any) -> float | None:
    """A finite float, or None where `value` is no finite number. Booleans and strings are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_integer(value: Any) -> int | None:
    """An integer within 64 bits, or None. A float without a fraction, such as 7.0, is an integer."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    integer = int(value)
    return integer if -LARGEST_ID <= integer <= LARGEST_ID else None
