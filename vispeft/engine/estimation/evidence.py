"""Results of the project's own studies, by configuration: mask AP compared with full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vispeft.io.json_files import read_json

_TABLE = Path(__file__).parents[2] / "assets" / "study_evidence.json"


@dataclass(frozen=True)
class Result:
    """Mean mask AP of a configuration and of full fine-tuning on one set, in the same setting of a study."""

    variant: str
    set: str
    mask_ap: float
    mask_ap_full: float
    difference: float
    seeds: int
    source: str

    def __str__(self) -> str:
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return f"{self.difference:+.3f} on {self.set} ({self.mask_ap:.3f} against {self.mask_ap_full:.3f}, {seeds})"


def results_of(variant: str) -> tuple[Result, ...]:
    """Return the results of a configuration by its name in the studies."""
    return tuple(result for result in _results() if result.variant == variant)


def reference_difference(variant: str) -> float | None:
    """Return the difference on nuclei-histo, the one set on which the studies have every configuration."""
    found = [result.difference for result in results_of(variant) if result.set == "nuclei-histo"]
    return found[0] if found else None


@cache
def _results() -> tuple[Result, ...]:
    return tuple(Result(**row) for row in read_json(_TABLE)["rows"])
