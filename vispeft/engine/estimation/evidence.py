"""Results of the project's own study, by configuration: mask AP compared with full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

from vispeft.io.json_files import read_json

_TABLE = Path(__file__).parents[2] / "assets" / "study_evidence.json"


@dataclass(frozen=True)
class Result:
    """Mean mask AP of a configuration and of full fine-tuning on one set, in the same sweep."""

    variant: str
    set: str
    mask_ap: float
    mask_ap_full: float
    seeds: int
    source: str

    def __str__(self) -> str:
        return f"{self.mask_ap:.3f} on {self.set}, full fine-tuning {self.mask_ap_full:.3f}"


def results_of(variant: str) -> tuple[Result, ...]:
    """Return the results of a configuration by its name in the study."""
    return tuple(result for result in _results() if result.variant == variant)


def share_of_full(variant: str) -> float | None:
    """Return mask AP divided by that of full fine-tuning, mean over the sets; None for an unknown configuration."""
    results = results_of(variant)
    return mean(result.mask_ap / result.mask_ap_full for result in results) if results else None


@cache
def _results() -> tuple[Result, ...]:
    return tuple(Result(**row) for row in read_json(_TABLE)["rows"])
