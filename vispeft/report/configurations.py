"""Configurations of a sweep, their metrics over the seeds, and their short titles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.evaluation.statistics.seeds import group_by_configuration, key_of_labels, with_most_seeds
from vispeft.io.run_layout import REPORT_FILE
from vispeft.report.page import Interval
from vispeft.report.sweep_contents import AP, SweepContents, Trial

_LAST_PART = re.compile(r"[^.\"]+$")
# with more variants, colours stand for methods
_MOST_VARIANTS = 7


@dataclass(frozen=True)
class Configuration:
    """A configuration with all its seeds.

    key: identifier within a page
    number: number of the first trial
    title: title that is short enough for a chart
    trials: the complete trials, or all if none is complete
    ap: mean AP over the seeds
    interval: interval of AP, or None
    is_over_seeds: True if the interval is the range of the seeds
    labels: chosen values by name
    settings: every key of the configuration with its value
    group: value that all configurations of one colour share
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
        """Return the mean of a metric over the complete trials."""
        values = [trial.metrics[name] for trial in self.trials if trial.state == "complete" and name in trial.metrics]
        return sum(values) / len(values) if values else None

    @property
    def nearest(self) -> Trial:
        """Trial with the AP nearest to the mean, which represents the configuration."""
        here = [trial for trial in self.trials if trial.path is not None] or list(self.trials)
        ap = self.ap
        return here[0] if ap is None else min(here, key=lambda trial: abs(trial.metrics.get(AP, -1.0) - ap))

    @property
    def is_complete(self) -> bool:
        return self.ap is not None


def configurations_of(sweep: SweepContents) -> list[Configuration]:
    """Return every configuration of a sweep, in the order of its first trial."""
    groups = group_by_configuration(sweep.trials, lambda trial: key_of_labels(trial.labels))
    names = short_names(dict.fromkeys(name for trial in sweep.trials for name in trial.labels))
    variants = {trial.labels.get("variant") for trial in sweep.trials}
    return [_configuration(trials, names, sweep, by_method=len(variants) > _MOST_VARIANTS) for trials in groups]


def short_names(names: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return the last part of each dotted key, such as `rank`, or a longer part if several keys share it."""
    short = {}
    for name in names:
        found = _LAST_PART.search(name)
        short[name] = found.group(0) if found else name
    taken = list(short.values())
    return {name: last if taken.count(last) == 1 else name.replace("peft.deltas.", "") for name, last in short.items()}


def title_of(labels: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return a title such as `adapters, count 2, lr 0.001`."""
    words = [str(value) if name == "variant" else f"{names[name]} {_shown(value)}" for name, value in labels.items()]
    return ", ".join(words) or "the configuration itself"


def ranked(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations with the most complete seeds, by falling AP."""
    found = with_most_seeds([one for one in configurations if one.ap is not None], lambda one: one.trials)
    return sorted(found, key=lambda configuration: -(configuration.ap or 0.0))


def front_of(configurations: Sequence[Configuration], cost: str) -> list[Configuration]:
    """Return the Pareto front of AP and a cost, the cheapest first."""
    front: list[Configuration] = []
    priced = [(one, one.mean(cost)) for one in ranked(configurations)]
    best = float("-inf")
    for configuration, _ in sorted(
        (pair for pair in priced if pair[1] is not None), key=lambda pair: (pair[1] or 0.0, -(pair[0].ap or 0.0))
    ):
        if configuration.ap is not None and configuration.ap > best:
            front.append(configuration)
            best = configuration.ap
    return front


def _configuration(
    trials: Sequence[Trial], names: Mapping[str, str], sweep: SweepContents, *, by_method: bool
) -> Configuration:
    """Return the configuration of trials that differ in the seed. by_method: colours stand for methods"""
    complete = [trial for trial in trials if trial.state == "complete" and trial.metrics.get(AP, -1) >= 0]
    values = [trial.metrics[AP] for trial in complete]
    ap = sum(values) / len(values) if values else None
    number = trials[0].number
    # a comparison names a configuration by its first complete trial
    found = sweep.comparison.intervals.get(complete[0].number) if sweep.comparison and complete else None
    over_seeds = Interval(ap, min(values), max(values)) if ap is not None and len(values) > 1 else None
    labels = trials[0].labels
    settings = next((trial.settings for trial in trials if trial.settings), {})
    return Configuration(
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
    """Return the variant, or the first value that is not a number."""
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
