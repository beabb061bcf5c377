"""Options of `adapter_config.json`: their types, and those that have no counterpart here."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vispeft.errors import CheckpointError
from vispeft.peft.interop.peft_library.known_options import COMMON, KnownOptions


@cache
def _pattern(key: str) -> re.Pattern[str]:
    """Return the library's pattern of a key. Kept, for re's own store is smaller than large tables."""
    return re.compile(rf"(.*\.)?({key})$")


@dataclass(frozen=True)
class Options:
    """Values of a configuration file, with one clear error for each that cannot be used."""

    path: Path
    values: Mapping[str, Any]  # of any type that JSON has

    @property
    def kind(self) -> str:
        """Kind of the adapter, as `LORA`."""
        return str(self.values.get("peft_type"))

    def check(self, known: KnownOptions) -> None:
        """Refuse options that change the function and have no counterpart, and set options that are not known."""
        for name, value in self.values.items():
            if value and name in known.refused:
                raise self._refused(name, "has no counterpart here")
            if value and name not in COMMON | known.free:
                raise self._refused(name, "is an option that this version of vispeft does not know")

    def number(self, name: str, default: float) -> float:
        """Return a finite number."""
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.wrong(name, "a finite number")
        return float(value)

    def count(self, name: str, default: int) -> int:
        """Return a positive integer."""
        value = self.values.get(name, default)
        if type(value) is not int or value < 1:
            raise self.wrong(name, "a positive integer")
        return value

    def flag(self, name: str) -> bool:
        """Return a truth value, False where there is none."""
        value = self.values.get(name) or False
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def names(self, name: str) -> str | list[str]:
        """Return names or the pattern of names; an empty list where there are none."""
        value = self.values.get(name) or []
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            return value
        raise self.wrong(name, "a list of names or a pattern")

    def pattern(self, name: str, site: str) -> Any | None:
        """Return the value that a table of patterns has for a site, by the library's rule; None without one.

        It is of any type that JSON has.
        """
        table = self.values.get(name) or {}
        if not isinstance(table, dict):
            raise self.wrong(name, "values by pattern")
        try:
            return next((value for key, value in table.items() if _pattern(key).match(site)), None)
        except re.error as error:
            raise CheckpointError(f"`{self.path}` has a pattern in `{name}` that cannot be read: {error}.") from error

    def for_site(self, name: str, patterns: str, site: str, default: float) -> float:
        """Return a number for one site: that of its pattern, or else of the option."""
        value = self.pattern(patterns, site)
        if value is None:
            return self.number(name, default)
        return Options(self.path, {patterns: value}).number(patterns, 0)

    def rank(self, name: str, site: str, default: int) -> int:
        """Return the rank of one site: that of its pattern, or else of the option."""
        value = self.pattern("rank_pattern", site)
        if value is None:
            return self.count(name, default)
        return Options(self.path, {"rank_pattern": value}).count("rank_pattern", 0)

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        """Return the error for a value of another type."""
        return CheckpointError(f"`{self.path}` has `{name}` set to {self.values.get(name)!r}, but needs {wanted}.")

    def unsupported_kind(self, known: Collection[str]) -> CheckpointError:
        """Return the error for a kind of adapter without a counterpart."""
        return CheckpointError(
            f"`{self.path}` has the peft_type {self.values.get('peft_type')!r}, which has no counterpart here. "
            f"{', '.join(sorted(known))} have."
        )

    def _refused(self, name: str, reason: str) -> CheckpointError:
        return CheckpointError(f"`{self.path}` has `{name}` set to {self.values[name]!r}, which {reason}.")
