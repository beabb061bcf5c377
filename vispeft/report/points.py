"""The configurations of a sweep, their metrics over the seeds, and their short titles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.evaluation.statistics.seeds import group_by_configuration, key_of_labels, with_most_seeds
from vispeft.io.run_layout import REPORT_FILE
from vispeft.report.page import Interval
from vispeft.report.sweep_files import AP, SweepFiles, Trial

_LAST_PART = re.compile(r"[^.\"]+$")
# more than these do not get a colour each
_MOST_VARIANTS = 7


@dataclass(frozen=True)
class Point:
    """A configuration over its seeds.

    key: its identifier within a page; number: of its first trial
    title: short enough for a chart
    trials: those that are complete, or all if none is
    ap: mean over the seeds; interval: of it, or None; is_over_seeds: the interval is the range of the seeds
    group: common value of the configurations with its colour
    """

    key: str
    number: int
    title: str
    labels: Mapping[str, Any]
    trials: Sequence[Trial]
    ap: float | None
    interval: Interval | None
    is_over_seeds: bool
    group: str
    settings: Mapping[str, Any]

    def mean(self, name: str) -> float | None:
        """Return the mean of a metric over its complete trials."""
        values = [trial.figures[name] for trial in self.trials if trial.state == "complete" and name in trial.figures]
        return sum(values) / len(values) if values else None

    @property
    def nearest(self) -> Trial:
        """The trial whose AP is nearest to the mean, to represent the configuration."""
        here = [trial for trial in self.trials if trial.path is not None] or list(self.trials)
        ap = self.ap
        return here[0] if ap is None else min(here, key=lambda trial: abs(trial.figures.get(AP, -1.0) - ap))

    @property
    def is_complete(self) -> bool:
        return self.ap is not None


def points_of(sweep: SweepFiles) -> list[Point]:
    """Return every configuration of a sweep, in the order of its first trial."""
    groups = group_by_configuration(sweep.trials, lambda trial: key_of_labels(trial.labels))
    names = short_names(dict.fromkeys(name for trial in sweep.trials for name in trial.labels))
    variants = {trial.labels.get("variant") for trial in sweep.trials}
    return [_point(trials, names, sweep, by_method=len(variants) > _MOST_VARIANTS) for trials in groups]


def short_names(names: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return the last part of each dotted key, or the shortest end of it that is unique."""
    short = {}
    for name in names:
        found = _LAST_PART.search(name)
        short[name] = found.group(0) if found else name
    taken = list(short.values())
    return {name: last if taken.count(last) == 1 else name.replace("peft.deltas.", "") for name, last in short.items()}


def title_of(labels: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return a title such as `adapters, count 2, lr 0.001`."""
    told = [str(value) if name == "variant" else f"{names[name]} {_shown(value)}" for name, value in labels.items()]
    return ", ".join(told) or "the configuration itself"


def ranked(points: Sequence[Point]) -> list[Point]:
    """Return configurations by falling AP, without those that have fewer complete seeds than others."""
    found = with_most_seeds([point for point in points if point.ap is not None], lambda point: point.trials)
    return sorted(found, key=lambda point: -(point.ap or 0.0))


def front_of(points: Sequence[Point], cost: str) -> list[Point]:
    """Return the Pareto front of AP and a cost, the cheapest first."""
    front: list[Point] = []
    priced = [(point, point.mean(cost)) for point in ranked(points)]
    best = float("-inf")
    for point, _ in sorted(
        (pair for pair in priced if pair[1] is not None), key=lambda pair: (pair[1] or 0.0, -(pair[0].ap or 0.0))
    ):
        if point.ap is not None and point.ap > best:
            front.append(point)
            best = point.ap
    return front


def _point(trials: Sequence[Trial], names: Mapping[str, str], sweep: SweepFiles, *, by_method: bool) -> Point:
    complete = [trial for trial in trials if trial.state == "complete" and trial.figures.get(AP, -1) >= 0]
    values = [trial.figures[AP] for trial in complete]
    ap = sum(values) / len(values) if values else None
    number = trials[0].number
    # a comparison names a configuration by its first complete trial
    found = sweep.verdict.intervals.get(complete[0].number) if sweep.verdict and complete else None
    over_seeds = Interval(ap, min(values), max(values)) if ap is not None and len(values) > 1 else None
    labels = trials[0].labels
    settings = next((trial.settings for trial in trials if trial.settings), {})
    return Point(
        key=f"c{number}",
        number=complete[0].number if complete else number,
        title=title_of(labels, names),
        labels=labels,
        trials=complete or trials,
        ap=ap,
        interval=found or over_seeds,
        is_over_seeds=found is None,
        group=_methods(settings) or _group(labels, names) if by_method else _group(labels, names),
        settings=settings,
    )


def _methods(settings: Mapping[str, Any]) -> str:
    """Return the methods of a configuration's deltas, such as `adapter, lora`; empty if it has none."""
    found = {value for key, value in settings.items() if key.startswith("peft.deltas.") and key.endswith(".method")}
    return ", ".join(sorted(map(str, found)))


def _group(labels: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the variant, or else the first value that is no number."""
    if "variant" in labels:
        return str(labels["variant"])
    for name, value in labels.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return f"{names[name]} {_shown(value)}"
    return "all configurations"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def run_page_of(trial: Trial) -> Path | None:
    """Return the path of a trial's report, or None if it does not exist."""
    return trial.path / REPORT_FILE if trial.path is not None else None
