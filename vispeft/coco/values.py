"""Numbers and flags from JSON values of any type: strings, null, lists, NaN, huge integers, booleans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Set
from typing import Any

LARGEST_ID = 2**63 - 1

_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def new_ids(used: Set[int]) -> Iterator[int]:
    """Yield positive integers that are not in use: those above all others, as far as 64 bits go."""
    above = range(max(0, *used, 0) + 1, LARGEST_ID + 1)
    return itertools.chain(above, (number for number in itertools.count(1) if number not in used))


def as_number(value: Any) -> float | None:
    """Return a finite float, or None where `value` is no finite number. Booleans and strings are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_integer(value: Any) -> int | None:
    """Return an integer within 64 bits, or None. A float without a fraction, such as 7.0, is an integer."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    integer = int(value)
    return integer if -LARGEST_ID <= integer <= LARGEST_ID else None


def as_flag(value: Any) -> bool | None:
    """Return the flag of 0, 1, false, true or null (which is false); None for anything else."""
    if value is None:
        return False
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def flag_of_text(value: Any) -> bool | None:
    """Return the flag of text such as "0", "1.0" and "False"; None for anything else."""
    return _FLAGS.get(value.strip().casefold()) if isinstance(value, str) else None


def why_no_id(value: Any) -> str:
    """Return the reason that a value is no id, as a clause such as "is text"."""
    if value is None:
        return "is missing"
    if isinstance(value, str):
        return "is text"
    return "is no integer"


def is_text(value: str) -> bool:
    """Return True for text that is not blank, in characters that can be printed and written to a file."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return bool(value.strip()) and "\0" not in value
