"""Charts of a sweep: AP against cost, and curves over training steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vispeft.report.charts import (
    NUM_COLOURS,
    QUIET,
    Axis,
    Chart,
    Format,
    Series,
    axis,
    placed_dots,
    placed_line,
)
from vispeft.report.configuration_dots import Choice, dot_of, extent_of, interval_note
from vispeft.report.configurations import Configuration, front_of
from vispeft.report.formats import byte_size, compact, duration
from vispeft.report.sweep_contents import SweepContents, Trial

COSTS: Mapping[str, tuple[str, Format]] = {
    "trainable_params": ("trainable parameters", compact),
    "train_seconds": ("training time", duration),
    "peak_memory_bytes": ("peak memory", byte_size),
    "adapter_bytes": ("adapter file", byte_size),
}


@dataclass(frozen=True)
class Colours:
    """A colour for each group of configurations, the largest group first. From the eighth on, groups share one."""

    groups: Sequence[str]

    def of(self, configuration: Configuration) -> int:
        """Return the number of a configuration's colour."""
        return min(self.groups.index(configuration.group), NUM_COLOURS - 1)

    @property
    def legend(self) -> list[tuple[str, int]]:
        shown = [(group, number) for number, group in enumerate(self.groups[: NUM_COLOURS - 1])]
        rest = self.groups[NUM_COLOURS - 1 :]
        last = rest[0] if len(rest) == 1 else f"{len(rest)} others"
        return [*shown, (last, NUM_COLOURS - 1)] if rest else shown


def colours_of(configurations: Sequence[Configuration]) -> Colours:
    """Return the colours of the groups, ordered by their number of configurations."""
    return Colours([group for group, _ in Counter(one.group for one in configurations).most_common()])


def front_charts(configurations: Sequence[Configuration], colours: Colours, page: Path) -> list[Choice]:
    """Return charts of AP against each cost, with the Pareto front."""
    choices = []
    for name, (label, format) in COSTS.items():
        priced = [(one, cost) for one in configurations if one.ap is not None and (cost := one.mean(name)) is not None]
        if priced:
            x = axis([cost for _, cost in priced], label, may_be_log=True, format=format)
            choices.append(Choice(name, label, _front_chart(priced, name, x, colours, page)))
    return choices


def _front_chart(
    priced: Sequence[tuple[Configuration, float]], cost_name: str, x: Axis, colours: Colours, page: Path
) -> Chart:
    """Return the chart of AP against one cost. priced: configurations with their cost; x: axis of the cost"""
    configurations = [one for one, _ in priced]
    y = axis([value for one in configurations for value in extent_of(one)], "mask AP")
    front = front_of(configurations, cost_name)
    dots = [
        dot_of(one, cost, colours.of(one), page, is_strong=one in front, text=one.title if one in front else "")
        for one, cost in priced
    ]
    # texts are placed in this order, so that the front and high AP come first
    dots.sort(key=lambda dot: (not dot.is_strong, -dot.y))
    stairs = _stairs([(one.mean(cost_name) or 0.0, one.ap or 0.0) for one in front], x.high)
    line = placed_line(Series("Pareto front", stairs, colour=QUIET, is_dashed=True), 0, x, y)
    placed = placed_dots(dots, x, y)
    note = interval_note(configurations)
    return Chart("Pareto front", x, y, [{**line, "marks": []}], placed, colours.legend, is_tall=True, note=note)


def curve_charts(sweep: SweepContents, configurations: Sequence[Configuration], colours: Colours) -> list[Chart]:
    """Return charts of validation AP and training loss over the steps, without curves of a single point."""
    charts = []
    for title, series_of in (
        ("Validation mask AP", lambda trial: trial.scores),
        ("Training loss", lambda trial: trial.losses),
    ):
        lines = [line for one in configurations for line in _curves(one, sweep, series_of, colours.of(one))]
        if any(len(line.points) > 1 for line in lines):
            x = axis([0.0, *(x for line in lines for x, _ in line.points)], "step")
            y = axis([value for line in lines for _, value in line.points], "")
            placed = [placed_line(line, 0, x, y) for line in lines]
            if len(placed) > 40:
                placed = [{**line, "marks": []} for line in placed]
            charts.append(Chart(title, x, y, placed, (), colours.legend))
    return charts


def _curves(
    configuration: Configuration,
    sweep: SweepContents,
    series_of: Callable[[Trial], Sequence[tuple[float, float]]],
    colour: int,
) -> list[Series]:
    """Return the mean curve of a configuration's complete trials, and each other trial as a dashed curve."""
    trials = [trial for trial in sweep.trials if trial.labels == configuration.labels and series_of(trial)]
    complete = [trial for trial in trials if trial.state == "complete"]
    lines = []
    if complete:
        name = f"mean of {len(complete)} seeds" if len(complete) > 1 else _trial_name(complete[0])
        lines.append(
            Series(name, _smooth(_mean_curve([series_of(trial) for trial in complete])), configuration.key, colour)
        )
    return lines + [
        Series(_trial_name(trial), _smooth(series_of(trial)), configuration.key, colour, is_dashed=True)
        for trial in trials
        if trial not in complete
    ]


def _mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean at the steps that all curves have."""
    values = [dict(curve) for curve in curves]
    shared = [step for step, _ in curves[0] if all(step in one for one in values)]
    return [(step, sum(one[step] for one in values) / len(values)) for step in shared]


def _stairs(points: Sequence[tuple[float, float]], x_end: float) -> list[tuple[float, float]]:
    """Return the Pareto front as a step line: each AP holds up to the cost of the next."""
    stairs: list[tuple[float, float]] = []
    for x, y in points:
        if stairs:
            stairs.append((x, stairs[-1][1]))
        stairs.append((x, y))
    return [*stairs, (x_end, stairs[-1][1])] if stairs else []


def _smooth(points: Sequence[tuple[float, float]], most: int = 60) -> list[tuple[float, float]]:
    """Return means over equal groups of points, few enough for a chart with hundreds of lines."""
    size = -(-len(points) // most) or 1
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _trial_name(trial: Trial) -> str:
    return f"trial {trial.number}, seed {trial.seed}" + ("" if trial.state == "complete" else f", {trial.state}")
