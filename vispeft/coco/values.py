"""Numbers and flags from JSON values of any type: strings, null, lists, NaN, huge integers, booleans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Set
from typing import Any, TypeGuard

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


def is_integer(value: Any) -> bool:
    """Tell whether a value is an integer in the range of int64 (true and false are not)."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a finite number (true and false are not)."""
    return math.isfinite(value) if isinstance(value, float) else is_integer(value)


def as_box(value: Any) -> tuple[float, float, float, float] | None:
    """Return a COCO box of four finite numbers x, y, width, height with sides of at least 0, or None."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        return None
    x, y, width, height = map(float, value)
    return (x, y, width, height) if width >= 0 and height >= 0 else None


def sides_of(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the `height` and `width` of an image entry, or None unless both are positive integers."""
    height, width = as_integer(image.get("height")), as_integer(image.get("width"))
    return (height, width) if height is not None and width is not None and min(height, width) > 0 else None
