"""Known names that are near to an unknown one, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_names(name: str, known: Iterable[str], *, at_most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names that are most similar to `name`, the nearest first.

    cutoff: similarity that a name must have, 0..1; with 0 the nearest is returned, however far it is
    """
    return difflib.get_close_matches(name, list(known), n=at_most, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "", cutoff: float = 0.5) -> str:
    """Return " Did you mean `x`?" with the known name nearest to `name`, or nothing if none is near.

    prefix: text in front of the name, such as the section of a key
    """
    return "".join(f" Did you mean `{prefix}{near}`?" for near in nearest_names(name, known, cutoff=cutoff))
