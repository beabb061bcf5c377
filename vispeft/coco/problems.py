"""Problems of a data set, collected as they are found and reported in one sentence per kind."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vispeft.errors import DataError

Severity = Literal["warn", "refuse"]

NAMED_AT_MOST = 5

_LIKE_OTHERS = re.compile(r"[-+]?(?:[\d.]+(?:[eE][-+]?\d+)?|Infinity|NaN)|true|false|null")


@dataclass(frozen=True)
class Problem:
    """One kind of problem, with all that it concerns.

    severity: `refuse` means that training must not start on this file
    kind: a short name, such as `missing-image`
    subjects: what it concerns, each named by id or file, such as "annotation 4 (12 numbers)"
    message: one sentence that names the first subjects and counts the rest
    """

    severity: Severity
    kind: str
    subjects: tuple[str, ...]
    message: str

    @property
    def count(self) -> int:
        """The number of annotations, images or categories that it concerns."""
        return len(self.subjects)


@dataclass(frozen=True)
class CheckReport:
    """Everything that was found in one annotation file.

    refused: training would refuse the file
    repaired: of a refused file, the report that its repair would give; `check_dataset` alone tells it
    """

    annotations: Path
    problems: tuple[Problem, ...]
    num_categories: int = 0
    num_images: int = 0
    num_instances: int = 0
    num_crowds: int = 0
    repaired: CheckReport | None = None

    @property
    def refusals(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "refuse")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "warn")

    @property
    def refused(self) -> bool:
        return bool(self.refusals)

    @property
    def is_fixable(self) -> bool:
        """True for a file that is refused while a repaired copy of it would not be."""
        return self.repaired is not None and not self.repaired.refused

    def raise_if_refused(self) -> None:
        """Raise one `DataError` that tells all refusals, or do nothing."""
        if not self.refused:
            return
        messages = [p.message for p in self.refusals] + [f"warning: {p.message}" for p in self.warnings]
        if len(messages) == 1:
            raise DataError(f"{self.annotations}: {messages[0]}")
        lines = "".join(f"\n  - {message}" for message in messages)
        count = len(self.refusals)
        raise DataError(f"{self.annotations} cannot be used, for {count} reason{'s' if count > 1 else ''}:{lines}")


@dataclass
class Findings:
    """Collection of problems while a file is read: one `Problem` per kind, in the order of first occurrence."""

    is_repairing: bool = False
    _found: dict[tuple[Severity, str, str], list[str]] = field(default_factory=dict)

    def warn(self, kind: str, sentence: str, subject: str) -> None:
        """Note that `subject` is left out or corrected. `sentence`: the fault and the consequence."""
        self._found.setdefault(("warn", kind, sentence), []).append(subject)

    def refuse(self, kind: str, sentence: str, subject: str, *, repair: str = "") -> None:
        """Note that `subject` must keep training from starting. `sentence` tells what is wrong and the remedy.

        An empty subject means the file itself.
        repair: what happens instead while a file is repaired, where that can be done
        """
        if self.is_repairing and repair:
            self.warn(kind, repair, subject)
            return
        self._found.setdefault(("refuse", kind, sentence), []).append(subject)

    @property
    def is_refused(self) -> bool:
        return any(severity == "refuse" for severity, _, _ in self._found)

    def problems(self) -> tuple[Problem, ...]:
        """The problems in order of first sight, refusals first."""
        problems = [
            Problem(severity, kind, tuple(subjects), f"{_enumerate(subjects)}: {sentence}" if subjects[0] else sentence)
            for (severity, kind, sentence), subjects in self._found.items()
        ]
        return tuple(sorted(problems, key=lambda p: p.severity != "refuse"))


def _enumerate(subjects: Sequence[str]) -> str:
    named = ", ".join(subjects[:NAMED_AT_MOST])
    rest = len(subjects) - NAMED_AT_MOST
    return f"{named} and {rest} more ({len(subjects)} in all)" if rest > 0 else named


def show(value: Any) -> str:
    """A value of unknown type from a JSON file as short printable text for a message."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    if isinstance(value, str):
        # in quotes where "1" would look like 1
        text = value if value and value.strip() == value and not _LIKE_OTHERS.fullmatch(value) else text
    text = "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode("utf-8"))
    return text if len(text) <= 80 else text[:77] + "..."
