"""Charts of the AP of a sweep against each number that was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vispeft.report.charts import QUIET, Chart, Series, axis, placed_dots, placed_line, value_axis
from vispeft.report.configuration_dots import Choice, dot_of, extent_of, interval_note
from vispeft.report.configurations import Configuration, short_names

# counts of a delta, by the last part of their key; a configuration without deltas has a count of 0
_COUNTS = {"count": "adapters per block", "rank": "rank", "width": "adapter width"}
# with more lines, only dots are drawn
_MOST_LINES = 8

# value of the key and the configuration
Members = list[tuple[float, Configuration]]


def parameter_charts(configurations: Sequence[Configuration], page: Path) -> list[Choice]:
    """Return charts of AP against each number that was varied, with a line for each choice of the other values."""
    complete = [one for one in configurations if one.ap is not None]
    values = [{**one.settings} or {**one.labels} for one in complete]
    varied = _varied(values)
    names = short_names([key for key in varied if _is_number_axis(values, key)])
    return [
        Choice(key, label, chart)
        for key in names
        for label in [_axis_name(key, names)]
        for chart in [_parameter_chart(complete, values, varied, key, label, page)]
    ]


def _parameter_chart(
    configurations: Sequence[Configuration],
    values: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
    key: str,
    label: str,
    page: Path,
) -> Chart:
    """Return a chart of AP against one key, with a line for each combination of the other values."""
    groups, bare = _members(configurations, values, varied, key)
    flat = [member for members in groups.values() for member in members]
    x = value_axis([place for place, _ in flat], label)
    y = axis([value for _, configuration in flat for value in extent_of(configuration)], "mask AP")
    has_lines = len(groups) <= _MOST_LINES
    lines, dots, legend = [], [], []
    for number, (title, members) in enumerate(groups.items()):
        colour = number if has_lines else 0
        if has_lines:
            series = Series(title or label, _means(members), colour=colour)
            lines.append({**placed_line(series, number, x, y), "marks": []})
            legend.append((series.name, colour))
        dots += [dot_of(one, place, colour if place or not bare else QUIET, page) for place, one in members]
    unique = list({(dot.x, dot.key): dot for dot in dots}.values())
    notes = [f"0 is {bare[0].title}: no delta at all." if bare else "", interval_note(configurations)]
    return Chart(
        f"Mask AP against {label}",
        x,
        y,
        lines,
        placed_dots(unique, x, y),
        legend,
        is_tall=True,
        note=" ".join(filter(None, notes)),
    )


def _members(
    configurations: Sequence[Configuration], values: Sequence[Mapping[str, Any]], varied: Sequence[str], key: str
) -> tuple[dict[str, Members], list[Configuration]]:
    """Return the members of each line by ascending value, and the configurations without deltas among them.

    If the key is a count of a delta, such as its rank, configurations without deltas are at 0 on every line.
    """
    lines: dict[str, Members] = {}
    all_bare = []
    for title, indices in _groups(values, varied, key).items():
        bare = _bare_configurations(configurations, values, indices) if _is_count(key) else []
        members = [(0.0, one) for one in bare] + [(float(values[i][key]), configurations[i]) for i in indices]
        lines[title] = sorted(members, key=lambda member: member[0])
        all_bare += bare
    return lines, all_bare


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


def _means(members: Members) -> list[tuple[float, float]]:
    """Return the mean AP at each value."""
    grouped: dict[float, list[float]] = {}
    for place, configuration in members:
        grouped.setdefault(place, []).append(configuration.ap or 0.0)
    return [(place, sum(values) / len(values)) for place, values in grouped.items()]


def _varied(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ between configurations."""
    keys = dict.fromkeys(key for one in values for key in one)
    return [key for key in keys if len({repr(one.get(key)) for one in values}) > 1]


def _follows(values: Sequence[Mapping[str, Any]], key: str, other: str) -> bool:
    """Return True if `other` has one value for each value of `key`, so that it adds no information.

    A key that only some configurations have adds information: it separates kinds of configurations, such as those with
    a delta at one more site.
    """
    if len({other in one for one in values if key in one}) > 1:
        return False
    pairs = {(repr(one[key]), repr(one.get(other))) for one in values if key in one}
    return len(pairs) == len({first for first, _ in pairs})


def _is_number_axis(values: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({one[key] for one in values if _is_number(one.get(key))}) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(key: str) -> bool:
    return key.startswith("peft.deltas.") and key.rpartition(".")[2] in _COUNTS


def _bare_configurations(
    configurations: Sequence[Configuration], values: Sequence[Mapping[str, Any]], indices: Sequence[int]
) -> list[Configuration]:
    """Return the configurations without deltas that otherwise equal a configuration of these indices."""
    equal = [_without_delta_keys(values[index]) for index in indices]
    return [
        configuration
        for configuration, one in zip(configurations, values, strict=True)
        if "model.name" in one
        and not any(key.startswith("peft.deltas.") for key in one)
        and _without_delta_keys(one) in equal
    ]


def _without_delta_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without those of deltas and of `train.methods`."""
    return {key: value for key, value in values.items() if not key.startswith(("peft.deltas.", "train.methods."))}


def _axis_name(key: str, names: Mapping[str, str]) -> str:
    """Return the name of a key on its axis. names: short names of all keys that have a chart"""
    if not _is_count(key):
        return names[key]
    last = key.rpartition(".")[2]
    site = key.removeprefix("peft.deltas.").rpartition(".")[0].strip('"')
    is_unique = sum(other.rpartition(".")[2] == last for other in names) == 1
    return _COUNTS[last] if is_unique else f"{_COUNTS[last]} at {site}"
