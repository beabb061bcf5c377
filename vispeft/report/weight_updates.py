"""What `vispeft inspect` found in a run's weights, for the page of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.errors import DataError
from vispeft.io.json_files import read_object
from vispeft.io.run_layout import INSPECTION_FILE
from vispeft.report.charts import NUM_COLOURS, Chart, Series, line_chart
from vispeft.report.formats import NOTHING
from vispeft.report.page import Cell

_COLUMNS = ("weights", "how", "sites", "rank", "effective rank", "90 %", "norm", "amplified", "in top", "by chance")
_FORMS = {
    "rank": "{:.0f}",
    "effective_rank": "{:.1f}",
    "energy_rank": "{:.0f}",
    "relative_norm": "{:.3f}",
    "amplification": "{:.1f}",
    "share_in_top": "{:.3f}",
    "share_by_chance": "{:.3f}",
}


@dataclass(frozen=True)
class WeightUpdatesSection:
    """Table and chart of the updates by pattern, and sentences on the rank."""

    columns: tuple[str, ...]
    rows: list[list[Cell]]
    chart: Chart | None
    advice: Sequence[str]


def read_weight_updates(run_dir: Path) -> WeightUpdatesSection | None:
    """Return the section, or None for a run that was not inspected.

    Raises DataError for a file that `vispeft inspect` did not write.
    """
    path = run_dir / INSPECTION_FILE
    found = read_object(path)
    if not found:
        return None
    try:
        groups, others, advice = found["groups"], found["others"], found["advice"]
        rows = [_row(group, others) for group in groups]
        lines = [Series(group["pattern"], list(enumerate(group["values"], start=1))) for group in _by_length(groups)]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"`{path}` must be a file of `vispeft inspect`, but is not. Delete it, or write it again."
        ) from error
    columns = (*_COLUMNS, *(f"overlap with {Path(other).name}" for other in others))
    chart = line_chart(lines, title="Singular values over the largest, medians", x_label="direction", from_zero=True)
    return WeightUpdatesSection(columns, rows, chart, advice)


def _row(group: Mapping[str, Any], others: Sequence[str]) -> list[Cell]:
    numbers = [_cell(group[key], form) for key, form in _FORMS.items()]
    overlaps = [_cell(group["overlaps"].get(other), "{:.2f}") for other in others]
    start = [Cell(group["pattern"], group["pattern"]), Cell(group["how"], group["how"])]
    return [*start, Cell(str(group["sites"]), group["sites"]), *numbers, *overlaps]


def _cell(value: float | None, form: str) -> Cell:
    return Cell(NOTHING if value is None else form.format(value), value)


def _by_length(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the groups of deltas with more than one singular value that the chart has colours for."""
    drawn = [group for group in groups if len(group["values"]) > 1]
    return sorted(drawn, key=lambda group: group["how"] == "in full")[:NUM_COLOURS]
