"""Faults of the annotations that results are scored against, collected during reading, reported by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vispeft.errors import DataError

NAMED_AT_MOST = 5


@dataclass
class Faults:
    """Collector of warnings and of faults for which an annotation file is refused.

    source: the file, as messages name it
    """

    source: str
    _warned: dict[str, list[str]] = field(default_factory=dict)
    _refused: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _is_mendable: bool = False

    def warn(self, what: str, name: str) -> None:
        """Record one annotation that is left out or mended."""
        self._warned.setdefault(what, []).append(name)

    def refuse(self, word: str, what: str, name: str, *, is_mendable: bool = False) -> None:
        """Record one entry that must not be scored.

        word: "annotation", "image" or "entry"; what: the fault, which follows "has" or "have"
        is_mendable: `vispeft data check --fix` mends it, without guessing
        """
        self._refused.setdefault((word, what), []).append(name)
        self._is_mendable = self._is_mendable or is_mendable

    def warnings(self) -> list[str]:
        """Return one sentence per kind of warning, with the first names."""
        return [f"{_listed('Annotation', names)}: {what}." for what, names in self._warned.items()]

    def raise_if_refused(self) -> None:
        """Raise one `DataError` that lists all refused entries, or do nothing."""
        if not self._refused:
            return
        told = "; ".join(
            f"{_listed(word, names)} {'has' if len(names) == 1 else 'have'} {what}"
            for (word, what), names in self._refused.items()
        )
        remedy = ""
        if self._is_mendable:
            file = self.source.strip("`") if self.source.startswith("`") else "FILE"
            remedy = (
                f" Run `vispeft data check {file} --images FOLDER --fix FIXED`, which writes ids, sizes and "
                "segmentations in COCO's form, and score against the repaired copy."
            )
        raise DataError(f"{self.source}: {told}.{remedy}")


def _listed(word: str, names: Sequence[str]) -> str:
    """Return such as "Annotations 3, 4", with at most five names, and the total number if there are more."""
    first = ", ".join(names[:NAMED_AT_MOST])
    plural = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    if len(names) > NAMED_AT_MOST:
        return f"{plural} {first}, ... ({len(names)} in all)"
    return f"{plural if len(names) > 1 else word} {first}"
