"""`key=value` overrides: a dotted path, with keys that contain dots in quotes, and a value in YAML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vispeft.config.strict_yaml import parse_yaml
from vispeft.errors import ConfigError

_KEY = re.compile(r"""\s*(?:"(?P<double>[^"]+)"|'(?P<single>[^']+)'|(?P<plain>[^.="'\s]+))\s*""")
_EITHER: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train", "steps"): ("train", "epochs"),
    ("train", "epochs"): ("train", "steps"),
}


@dataclass(frozen=True)
class Override:
    """A value that replaces the one at a path."""

    path: tuple[str, ...]
    value: Any


def parse_override(word: str) -> Override:
    """Return the override of one argument of the command line, such as `peft.deltas."a.b.*".rank=8`."""
    path: list[str] = []
    position = 0
    while match := _KEY.match(word, position):
        path.append(next(text for text in match.groups() if text is not None))
        position = match.end()
        if word[position : position + 1] != ".":
            break
        position += 1
    if not path or word[position : position + 1] != "=":
        raise ConfigError(f"`{word}` must be `key=value`, such as train.steps=200. Quote a key that contains dots.")
    return Override(tuple(path), parse_yaml(word[position + 1 :], f"The value of `{word[:position]}`"))


def apply_overrides(raw: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Return a copy of `raw` with the overrides applied in order. train.steps clears train.epochs and vice versa."""
    assigned = {override.path for override in overrides}
    for override in overrides:
        raw = _assigned(raw, override.path, override.value, ())
        other = _EITHER.get(override.path)
        if other is not None and other not in assigned:
            raw = _assigned(raw, other, None, ())
    return raw


def _assigned(raw: dict[str, Any], path: tuple[str, ...], value: Any, above: tuple[str, ...]) -> dict[str, Any]:
    key, *rest = path
    if not rest:
        return {**raw, key: value}
    inner = raw.get(key)
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError(f"`{'.'.join((*above, *path))}` cannot be set: `{'.'.join((*above, key))}` has no keys.")
    return {**raw, key: _assigned(inner or {}, tuple(rest), value, (*above, key))}
