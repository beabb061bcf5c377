"""The charts of a sweep: AP against cost, against each number that was varied, and over training steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.report.charts import (
    NUM_COLOURS,
    QUIET,
    Chart,
    Dot,
    Format,
    Series,
    axis,
    placed_dots,
    placed_line,
    value_axis,
)
from vispeft.report.formats import byte_size, compact, duration, figure
from vispeft.report.page import link_to
from vispeft.report.points import Point, front_of, run_page_of, short_names
from vispeft.report.sweep_files import SweepFiles, Trial

COSTS: Mapping[str, tuple[str, Format]] = {
    "trainable_params": ("trainable parameters", compact),
    "train_seconds": ("training time", duration),
    "peak_memory_bytes": ("peak memory", byte_size),
    "adapter_bytes": ("adapter file", byte_size),
}
# what a number under `peft.deltas` is called, and that none of it is 0 of it
_COUNTED = {"count": "adapters per block", "rank": "rank", "width": "adapter width"}
_MOST_LINES = 8


@dataclass(frozen=True)
class Choice:
    """One of several charts that a reader chooses from. key: unique among them"""

    key: str
    label: str
    chart: Chart


@dataclass(frozen=True)
class Colours:
    """A colour for each group of configurations, the largest first; from the eighth on all groups share one."""

    groups: Sequence[str]

    def of(self, point: Point) -> int:
        """Return the number of a configuration's colour."""
        return min(self.groups.index(point.group), NUM_COLOURS - 1)

    @property
    def legend(self) -> list[tuple[str, int]]:
        shown = [(group, number) for number, group in enumerate(self.groups[: NUM_COLOURS - 1])]
        rest = self.groups[NUM_COLOURS - 1 :]
        last = rest[0] if len(rest) == 1 else f"{len(rest)} others"
        return [*shown, (last, NUM_COLOURS - 1)] if rest else shown


def colours_of(points: Sequence[Point]) -> Colours:
    """Return the colours of the groups, ordered by their number of configurations."""
    return Colours([group for group, _ in Counter(point.group for point in points).most_common()])


def front_charts(points: Sequence[Point], colours: Colours, page: Path) -> list[Choice]:
    """Return charts of AP against each cost, with the Pareto front."""
    choices = []
    for name, (label, format) in COSTS.items():
        priced = [(point, cost) for point in points if point.ap is not None and (cost := point.mean(name)) is not None]
        if not priced:
            continue
        x = axis([cost for _, cost in priced], label, may_be_log=True, format=format)
        y = axis([value for point, _ in priced for value in _extent(point)], "mask AP")
        front = front_of([point for point, _ in priced], name)
        dots = [
            _dot(
                point,
                cost,
                colours.of(point),
                page,
                is_strong=point in front,
                text=point.title if point in front else "",
            )
            for point, cost in priced
        ]
        # a text has its place before those of lesser configurations
        dots.sort(key=lambda dot: (not dot.is_strong, -dot.y))
        line = Series("Pareto front", _stairs([(point.mean(name) or 0.0, point.ap or 0.0) for point in front], x.high))
        lines = [placed_line(Series(line.name, line.points, colour=QUIET, is_dashed=True), 0, x, y)]
        lines[0]["marks"] = []
        chart = Chart(
            "Pareto front", x, y, lines, placed_dots(dots, x, y), colours.legend, is_tall=True, note=_bars(points)
        )
        choices.append(Choice(name, label, chart))
    return choices


def parameter_charts(points: Sequence[Point], page: Path) -> list[Choice]:
    """Return charts of AP against each number that was varied, with a line for each choice of the other values."""
    complete = [point for point in points if point.ap is not None]
    values = [{**point.settings} or {**point.labels} for point in complete]
    varied = _varied(values)
    names = short_names([key for key in varied if _is_number_axis(values, key)])
    return [
        Choice(key, label, chart)
        for key in names
        for label in [_axis_name(key, names)]
        for chart in [_parameter_chart(complete, values, varied, key, label, page)]
    ]


def curve_charts(sweep: SweepFiles, points: Sequence[Point], colours: Colours) -> list[Chart]:
    """Return charts of validation AP and training loss over the steps, without curves of a single evaluation."""
    charts = []
    for title, series_of in (
        ("Validation mask AP", lambda trial: trial.scores),
        ("Training loss", lambda trial: trial.losses),
    ):
        lines = [line for point in points for line in _curves(point, sweep, series_of, colours.of(point))]
        if any(len(line.points) > 1 for line in lines):
            x = axis([0.0, *(x for line in lines for x, _ in line.points)], "step")
            y = axis([value for line in lines for _, value in line.points], "")
            placed = [placed_line(line, 0, x, y) for line in lines]
            if len(placed) > 40:
                placed = [{**line, "marks": []} for line in placed]
            charts.append(Chart(title, x, y, placed, (), colours.legend))
    return charts


def _curves(
    point: Point, sweep: SweepFiles, series_of: Callable[[Trial], Sequence[tuple[float, float]]], colour: int
) -> list[Series]:
    """Return the mean curve of a configuration's complete trials, and each other trial as a dashed curve."""
    trials = [trial for trial in sweep.trials if trial.labels == point.labels and series_of(trial)]
    complete = [trial for trial in trials if trial.state == "complete"]
    lines = []
    if complete:
        name = f"mean of {len(complete)} seeds" if len(complete) > 1 else _trial_name(complete[0])
        lines.append(Series(name, _smooth(_mean_curve([series_of(trial) for trial in complete])), point.key, colour))
    return lines + [
        Series(_trial_name(trial), _smooth(series_of(trial)), point.key, colour, is_dashed=True)
        for trial in trials
        if trial not in complete
    ]


def _mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean at the steps that all curves have."""
    values = [dict(curve) for curve in curves]
    shared = [step for step, _ in curves[0] if all(step in one for one in values)]
    return [(step, sum(one[step] for one in values) / len(values)) for step in shared]


def _parameter_chart(
    points: Sequence[Point],
    values: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
    key: str,
    label: str,
    page: Path,
) -> Chart:
    """Return a chart of AP against one key.

    If the key is a count of a delta, such as its rank, configurations without deltas are at 0 on every line.
    """
    groups = _groups(values, varied, key)
    lists, bare = [], []
    for indices in groups.values():
        found = _without_delta(points, values, indices) if _is_counted(key) else []
        members = [(0.0, point) for point in found] + [(float(values[index][key]), points[index]) for index in indices]
        lists.append(sorted(members, key=lambda member: member[0]))
        bare += found
    flat = [member for members in lists for member in members]
    x = value_axis([place for place, _ in flat], label)
    y = axis([value for _, point in flat for value in _extent(point)], "mask AP")
    has_lines = len(groups) <= _MOST_LINES
    lines, dots, legend = [], [], []
    for number, (title, members) in enumerate(zip(groups, lists, strict=True)):
        colour = number if has_lines else 0
        if has_lines:
            lines.append(placed_line(Series(title or label, _means(members), colour=colour), number, x, y))
            legend.append((title or label, colour))
        dots += [_dot(point, place, colour if place or not bare else QUIET, page) for place, point in members]
    for line in lines:
        line["marks"] = []
    unique = list({(dot.x, dot.key): dot for dot in dots}.values())
    note = f"0 is {bare[0].title}: no delta at all." if bare else ""
    return Chart(
        f"Mask AP against {label}",
        x,
        y,
        lines,
        placed_dots(unique, x, y),
        legend,
        is_tall=True,
        note=" ".join(filter(None, (note, _bars(points)))),
    )


def _groups(values: Sequence[Mapping[str, Any]], varied: Sequence[str], key: str) -> dict[str, list[int]]:
    """Return the indices of the configurations that have a key, by their other chosen values."""
    groups: dict[str, list[int]] = {}
    others = [other for other in varied if other != key and not _follows(values, key, other)]
    with_key = [index for index, one in enumerate(values) if _is_number(one.get(key))]
    short = short_names([other for other in others if len({repr(values[i].get(other)) for i in with_key}) > 1])
    for index in with_key:
        title = ", ".join(f"{name} {values[index][other]}" for other, name in short.items() if other in values[index])
        groups.setdefault(title, []).append(index)
    return groups


def _dot(point: Point, x: float, colour: int, page: Path, *, is_strong: bool = True, text: str = "") -> Dot:
    target = run_page_of(point.nearest)
    interval = point.interval
    told = f"{point.title}: mask AP {figure(point.ap)}"
    if interval is not None:
        told += f" ({figure(interval.low)} to {figure(interval.high)})"
    return Dot(
        x,
        point.ap or 0.0,
        point.key,
        told,
        link_to(target, page) if target is not None else "",
        colour,
        None if interval is None else interval.low,
        None if interval is None else interval.high,
        is_strong,
        text,
    )


def _extent(point: Point) -> list[float]:
    """Return all values of a configuration that the AP axis must cover."""
    found = [point.ap or 0.0]
    return found if point.interval is None else [*found, point.interval.low, point.interval.high]


def _bars(points: Sequence[Point]) -> str:
    """Return the meaning of the bars, a sentence or nothing."""
    kinds = {point.is_over_seeds for point in points if point.interval is not None}
    if not kinds:
        return ""
    if kinds == {True}:
        return "Bars reach from the lowest to the highest seed."
    return "Bars are bootstrap intervals over images and seeds" + (
        "; of configurations that were not compared, the range of the seeds." if True in kinds else "."
    )


def _stairs(points: Sequence[tuple[float, float]], x_end: float) -> list[tuple[float, float]]:
    """Return the Pareto front as a step line: each AP is kept up to the cost of the next."""
    stairs: list[tuple[float, float]] = []
    for x, y in points:
        if stairs:
            stairs.append((x, stairs[-1][1]))
        stairs.append((x, y))
    return [*stairs, (x_end, stairs[-1][1])] if stairs else []


def _smooth(points: Sequence[tuple[float, float]], most: int = 60) -> list[tuple[float, float]]:
    """Return means over equal stretches, few enough points for a chart of hundreds of lines."""
    size = -(-len(points) // most) or 1
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _means(members: Sequence[tuple[float, Point]]) -> list[tuple[float, float]]:
    grouped: dict[float, list[float]] = {}
    for place, point in members:
        grouped.setdefault(place, []).append(point.ap or 0.0)
    return [(place, sum(values) / len(values)) for place, values in grouped.items()]


def _varied(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ between configurations."""
    keys = dict.fromkeys(key for one in values for key in one)
    return [key for key in keys if len({repr(one.get(key)) for one in values}) > 1]


def _follows(values: Sequence[Mapping[str, Any]], key: str, other: str) -> bool:
    """Tell whether `other` has one value for each value of `key`, so that it adds no information.

    A key that only some configurations have does not follow: it makes another configuration, such as a delta at one
    more site.
    """
    if len({other in one for one in values if key in one}) > 1:
        return False
    pairs = {(repr(one[key]), repr(one.get(other))) for one in values if key in one}
    return len(pairs) == len({first for first, _ in pairs})


def _is_number_axis(values: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({one[key] for one in values if _is_number(one.get(key))}) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_counted(key: str) -> bool:
    return key.startswith("peft.deltas.") and key.rpartition(".")[2] in _COUNTED


def _without_delta(points: Sequence[Point], values: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Point]:
    """Return the configurations without deltas that otherwise equal one of those with these indices."""
    alike = [_beside_deltas(values[index]) for index in indices]
    return [
        point
        for point, one in zip(points, values, strict=True)
        if "model.name" in one
        and not any(key.startswith("peft.deltas.") for key in one)
        and _beside_deltas(one) in alike
    ]


def _beside_deltas(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without those of the deltas and of the training of methods."""
    return {key: value for key, value in values.items() if not key.startswith(("peft.deltas.", "train.methods."))}


def _axis_name(key: str, names: Mapping[str, str]) -> str:
    if not _is_counted(key):
        return names[key]
    last = key.rpartition(".")[2]
    site = key.removeprefix("peft.deltas.").rpartition(".")[0].strip('"')
    is_alone = sum(other.rpartition(".")[2] == last for other in names) == 1
    return _COUNTED[last] if is_alone else f"{_COUNTED[last]} at {site}"


def _trial_name(trial: Trial) -> str:
    return f"trial {trial.number}, seed {trial.seed}" + ("" if trial.state == "complete" else f", {trial.state}")
