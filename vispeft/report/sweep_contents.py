"""Contents of a sweep's directory, read for a report: the table, and the run of each trial if it exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.errors import DataError
from vispeft.io.json_files import read_json, read_object
from vispeft.io.metrics_file import read_metrics
from vispeft.io.run_layout import CONFIG_FILE, METRICS_FILE
from vispeft.io.sweep_layout import COMPARISON_FILE, RESULTS_JSON, SWEEP_FILE, trial_directory
from vispeft.io.yaml_files import read_mapping
from vispeft.report.formats import defined
from vispeft.report.page import Interval

AP = "segm/AP"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    labels: the chosen values, the variant included
    metrics: metrics and costs by name
    settings: every key of the configuration with its value, without `train.seed`; empty if the directory is missing
    path: run directory, or None
    scores: step and mask AP
    losses: step and training loss
    """

    number: int
    labels: Mapping[str, Any]
    seed: int
    state: str
    metrics: Mapping[str, float]
    message: str
    path: Path | None
    settings: Mapping[str, Any]
    scores: Sequence[tuple[float, float]]
    losses: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class SweepComparison:
    """Result of `vispeft.evaluation.statistics.compare` on a sweep's configurations.

    intervals: interval of AP, by the number of a configuration's first trial
    differences: difference to the best and its p value, by the same number
    equals: first trial numbers of the configurations that are not distinguishable from the best
    """

    sentence: str
    notes: Sequence[str]
    level: float
    num_images: int
    num_resamples: int
    intervals: Mapping[int, Interval]
    differences: Mapping[int, tuple[Interval, float]]
    equals: frozenset[int]
    cheapest: int | None
    best: int


@dataclass(frozen=True)
class SweepContents:
    """The contents of a sweep's directory.

    sweep_text: text of sweep.yaml
    comparison: comparison of the configurations; None if there is none for exactly these trials
    """

    path: Path
    results: Mapping[str, Any]
    sweep_text: str
    trials: Sequence[Trial]
    comparison: SweepComparison | None

    def count(self, state: str) -> int:
        """Return the number of trials in a state."""
        return sum(trial.state == state for trial in self.trials)


def read_sweep(sweep_dir: Path) -> SweepContents:
    """Read a sweep's directory."""
    results_path = sweep_dir / RESULTS_JSON
    if not results_path.is_file():
        raise DataError(
            f"`{sweep_dir}` must be a sweep's directory, but has no {RESULTS_JSON}. `vispeft sweep` writes it."
        )
    results = read_object(results_path)
    sweep_path = sweep_dir / SWEEP_FILE
    trials = [_trial(entry, sweep_dir) for entry in results.get("trials", [])]
    return SweepContents(
        path=sweep_dir,
        results=results,
        sweep_text=sweep_path.read_text(encoding="utf-8") if sweep_path.is_file() else "",
        trials=trials,
        comparison=_comparison(sweep_dir / COMPARISON_FILE, trials),
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of nested mappings; indices in lists of mappings become numbers."""
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def _trial(entry: Mapping[str, Any], sweep_dir: Path) -> Trial:
    run_dir = trial_directory(sweep_dir, entry["trial"])
    path = run_dir if (run_dir / CONFIG_FILE).is_file() else None
    lines = [] if path is None else read_metrics(path / METRICS_FILE)
    labels = {"variant": entry["variant"]} if entry.get("variant") is not None else {}
    return Trial(
        number=entry["trial"],
        labels={**labels, **entry["parameters"]},
        seed=entry["seed"],
        state=entry["state"],
        metrics=entry["metrics"],
        message=entry["message"],
        path=path,
        settings={} if path is None else _settings(path / CONFIG_FILE),
        scores=_series(lines, "val", AP),
        losses=_series(lines, "train", "loss"),
    )


def _series(lines: Sequence[Mapping[str, Any]], split: str, key: str) -> list[tuple[float, float]]:
    values = {
        line["step"]: line[key]
        for line in lines
        if line.get("split") == split and isinstance(line.get(key), (int, float))
    }
    return sorted((step, value) for step, value in values.items() if split == "train" or defined(value) is not None)


def _settings(path: Path) -> dict[str, Any]:
    """Return the keys and values of a configuration that affect training; empty if the file cannot be read."""
    try:
        config = read_mapping(path)
    except DataError:
        return {}
    return {key: value for key, value in flat(config) if key != "train.seed"}


def _comparison(path: Path, trials: Sequence[Trial]) -> SweepComparison | None:
    """Return the comparison in a file, if it covers the trials that are complete now."""
    content = read_json(path) if path.is_file() else None
    complete = sorted(trial.number for trial in trials if trial.state == "complete")
    if not isinstance(content, dict) or content.get("complete") != complete:
        return None
    firsts = [result["trials"][0] for result in content["results"]]
    numbers = {result["name"]: first for result, first in zip(content["results"], firsts, strict=True)}
    return SweepComparison(
        sentence=content["sentence"],
        notes=content["notes"],
        level=content["level"],
        num_images=content["num_images"],
        num_resamples=content["num_resamples"],
        intervals={first: _interval(one["estimate"]) for first, one in zip(firsts, content["results"], strict=True)},
        differences={
            first: (_interval(one["difference"]), one["corrected_p"])
            for first, one in zip(firsts, content["results"], strict=True)
            if one["difference"] is not None
        },
        equals=frozenset(numbers[name] for name in content["equals"]),
        cheapest=numbers.get(content["cheapest"]),
        best=numbers[content["best"]],
    )


def _interval(estimate: Mapping[str, float]) -> Interval:
    return Interval(estimate["value"], estimate["low"], estimate["high"])
