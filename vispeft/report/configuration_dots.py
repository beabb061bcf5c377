"""Configurations of a sweep as dots of a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vispeft.report.charts import Chart, Dot
from vispeft.report.configurations import Configuration, run_page_of
from vispeft.report.formats import metric_text
from vispeft.report.page import link_to


@dataclass(frozen=True)
class Choice:
    """One of several charts from which a reader chooses. key: key that is unique among these charts"""

    key: str
    label: str
    chart: Chart


def dot_of(
    configuration: Configuration, x: float, colour: int, page: Path, *, is_strong: bool = True, text: str = ""
) -> Dot:
    """Return the dot of a configuration at `x`, with a link to the page of the run nearest to the mean."""
    target = run_page_of(configuration.nearest)
    interval = configuration.interval
    label = f"{configuration.title}: mask AP {metric_text(configuration.ap)}"
    if interval is not None:
        label += f" ({metric_text(interval.low)} to {metric_text(interval.high)})"
    return Dot(
        x=x,
        y=configuration.ap or 0.0,
        key=configuration.key,
        label=label,
        link=link_to(target, page) if target is not None else "",
        colour=colour,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        is_strong=is_strong,
        text=text,
    )


def extent_of(configuration: Configuration) -> list[float]:
    """Return all values of a configuration that the AP axis must cover."""
    found = [configuration.ap or 0.0]
    return (
        found if configuration.interval is None else [*found, configuration.interval.low, configuration.interval.high]
    )


def interval_note(configurations: Sequence[Configuration]) -> str:
    """Return a sentence about the meaning of the interval bars; empty without intervals."""
    kinds = {one.is_over_seeds for one in configurations if one.interval is not None}
    if not kinds:
        return ""
    if kinds == {True}:
        return "Bars show the range of the seeds."
    return "Bars are bootstrap intervals over images and seeds" + (
        "; for configurations that were not compared, the range of the seeds." if True in kinds else "."
    )
