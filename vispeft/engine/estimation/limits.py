"""Limits of training that a user gives as text: trained parameters, memory, time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vispeft.errors import ConfigError

_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z%]*)\s*")
_COUNTS = {"k": 1e3, "m": 1e6, "b": 1e9}
_BYTES = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_BYTES = {**_BYTES, **{f"{unit}{end}": size for unit, size in _BYTES.items() if unit != "b" for end in ("b", "ib")}}
_SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}


@dataclass(frozen=True)
class Limits:
    """Most that training may take; None where there is no limit.

    share: trained parameters as a part of all, 0..1
    count: trained parameters
    memory: bytes, of 1024 to the kB
    seconds: of training without evaluations
    text: the limits as they were given
    """

    share: float | None = None
    count: int | None = None
    memory: int | None = None
    seconds: float | None = None
    text: str = ""

    @property
    def are_empty(self) -> bool:
        """True without any limit."""
        return self.share is None and self.count is None and self.memory is None and self.seconds is None

    def allow_params(self, trained: int, total: int) -> bool:
        """Return True if so many trained parameters of all are within the budget."""
        if self.share is not None and trained > self.share * total:
            return False
        return self.count is None or trained <= self.count

    def __str__(self) -> str:
        return self.text


def parse_limits(budget: str | None, memory: str | None, time: str | None) -> Limits:
    """Return the limits of the options `--budget`, `--memory` and `--time`. Raises ConfigError for nonsense."""
    share, count = (None, None) if budget is None else _parse_budget(budget)
    given = (("--budget", budget), ("--memory", memory), ("--time", time))
    return Limits(
        share,
        count,
        None if memory is None else int(_parse("--memory", memory, _BYTES, "8GB or 900MB")),
        None if time is None else _parse("--time", time, _SECONDS, "20min, 90s or 1.5h"),
        ", ".join(f"{name} {' '.join(text.split())}" for name, text in given if text is not None),
    )


def _parse_budget(text: str) -> tuple[float | None, int | None]:
    """Return a share of all parameters, or a number: `1%`, `0.01`, `200k`, `150000`."""
    example = "1%, 0.01 or 200k"
    match = _NUMBER.fullmatch(text)
    value, unit = (float(match[1]), match[2].lower()) if match else (0.0, "?")
    if unit == "%" and 0 < value <= 100:
        return value / 100, None
    if unit == "" and 0 < value <= 1:
        return value, None
    if unit in ("", *_COUNTS) and value * _COUNTS.get(unit, 1) >= 1:
        return None, int(value * _COUNTS.get(unit, 1))
    raise ConfigError(f"`--budget` must be a share or a number of parameters such as {example}, but is {text!r}.")


def _parse(option: str, text: str, units: Mapping[str, float], example: str) -> float:
    """Return a positive number with a unit."""
    match = _NUMBER.fullmatch(text)
    if match is None or match[2].lower() not in units or not float(match[1]):
        raise ConfigError(f"`{option}` must be a positive number with a unit such as {example}, but is {text!r}.")
    return float(match[1]) * units[match[2].lower()]
