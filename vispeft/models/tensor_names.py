"""Tensor names of another library beside ours, as pairs that are read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping

NamePairs = Mapping[str, str]
"""Our names with those of another library. `*` is a number, and a name that ends in `.` is the start of longer ones."""


def to_ours(name: str, pairs: NamePairs) -> str | None:
    """Return our name of another library's tensor; None for one that is not in `pairs`."""
    return next((found for ours, theirs in pairs.items() if (found := _translated(name, theirs, ours))), None)


def to_theirs(name: str, pairs: NamePairs) -> str | None:
    """Return another library's name of our tensor; None for one that is not in `pairs`."""
    return next((found for ours, theirs in pairs.items() if (found := _translated(name, ours, theirs))), None)


def within(pairs: NamePairs, ours: str, theirs: str) -> dict[str, str]:
    """Return pairs with a prefix before our names and another one before those of the other library."""
    return {f"{ours}{a}": f"{theirs}{b}" for a, b in pairs.items()}


def _translated(name: str, pattern: str, replacement: str) -> str | None:
    expression = r"(\d+)".join(re.escape(piece) for piece in pattern.split("*"))
    match = re.fullmatch(f"{expression}(.*)" if pattern.endswith(".") else expression, name)
    if match is None:
        return None
    *numbers, ending = (*match.groups(), "") if not pattern.endswith(".") else match.groups()
    first, *rest = replacement.split("*")
    return first + "".join(number + piece for number, piece in zip(numbers, rest, strict=True)) + ending
