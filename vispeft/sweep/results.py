"""Results of a sweep: a table of trials, its files, and the best configuration."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from vispeft.config import dump_config
from vispeft.errors import TrainingError
from vispeft.evaluation.statistics.seeds import group_by_configuration, key_of_labels, with_most_seeds
from vispeft.io.atomic import write_text
from vispeft.io.json_files import write_json
from vispeft.report import write_sweep_report
from vispeft.sweep.schema import DIRECTIONS
from vispeft.sweep.space import VARIANT, Labels, describe_point
from vispeft.sweep.storage import redacted, storage_url
from vispeft.sweep.study import DIRECTORY, INDEX, MESSAGE, METRICS, OWNER, SEED, SharedStudy
from vispeft.sweep.sweep import Run

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_CSV_METRICS = {
    "AP": "segm/AP",
    "AP50": "segm/AP50",
    "AP75": "segm/AP75",
    "box_AP": "bbox/AP",
    "trainable_params": "trainable_params",
    "trainable_percent": "trainable_percent",
    "adapter_bytes": "adapter_bytes",
    "train_seconds": "train_seconds",
    "peak_memory_bytes": "peak_memory_bytes",
}


@dataclass(frozen=True)
class Row:
    """One run of a sweep.

    state: complete, pruned, failed, running or waiting
    metrics: metrics and costs, such as `segm/AP` and `trainable_params`. A pruned run has those of its best evaluation;
        a waiting, running or failed run has none.
    """

    index: int
    run: Run
    seed: int
    state: str
    metrics: Mapping[str, float]
    directory: str
    message: str

    @property
    def number(self) -> int:
        """Number of the trial as shown to users, counted from 1."""
        return self.index + 1


@dataclass(frozen=True)
class Configuration:
    """A point of the space with all its seeds. rows: complete runs; means: mean of each objective over them"""

    labels: Labels
    rows: Sequence[Row]
    means: Mapping[str, float]

    @property
    def title(self) -> str:
        """Title of the configuration, such as `adapters_x2, train.lr=0.001`."""
        return describe_point(self.labels) or "the configuration itself"

    @property
    def objective(self) -> float:
        """Mean of the first objective."""
        return next(iter(self.means.values()))


@dataclass(frozen=True)
class Results:
    """Table of a sweep: rows in the order of their numbers.

    ranked: configurations with the most complete seeds, the best mean of the first objective first
    front: Pareto front of the objectives, the best first
    """

    rows: Sequence[Row]
    ranked: Sequence[Configuration]
    front: Sequence[Configuration]

    @property
    def best(self) -> Configuration | None:
        return self.ranked[0] if self.ranked else None

    def count(self, state: str) -> int:
        """Return the number of runs in a state."""
        return sum(row.state == state for row in self.rows)


def collect(shared: SharedStudy) -> Results:
    """Return the results of the trials that are now in the study."""
    rows = [_row(shared, trial) for trial in shared.trials().values() if _is_defined(trial)]
    objectives = shared.sweep.settings.objectives
    found = _configurations(rows, objectives)
    found = with_most_seeds(found, lambda configuration: configuration.rows)
    found.sort(key=lambda configuration: configuration.objective, reverse=DIRECTIONS[objectives[0]] == "maximize")
    front = [one for one in found if not any(_dominates(other, one) for other in found)]
    return Results(rows, found, front)


def write_results(shared: SharedStudy, results: Results) -> None:
    """Write results.json, results.csv, best.yaml and report.html, each atomically."""
    directory, sweep = shared.directory, shared.sweep
    content = {
        "name": sweep.name,
        "study": sweep.study_name,
        "storage": redacted(storage_url(directory.storage_url(sweep))),
        "sampler": sweep.settings.sampler,
        "objectives": {name: DIRECTIONS[name] for name in sweep.settings.objectives},
        "num_runs": sweep.num_runs,
        "trials": [_entry(row) for row in results.rows],
        "best": None if results.best is None else _summary(results.best),
        "front": [_summary(configuration) for configuration in results.front],
    }
    write_json(directory.results_json, content, raises=TrainingError, indent=1)
    table = _csv(results.rows, [d.name for d in sweep.space.dimensions])
    write_text(directory.results_csv, table, raises=TrainingError)
    if results.best is not None:
        write_text(directory.best, _best_yaml(shared, results.best), raises=TrainingError)
    write_sweep_report(directory.root)


def _is_defined(trial: FrozenTrial) -> bool:
    """Return True if the point of the trial is complete. The owner is written last."""
    return OWNER in trial.user_attrs or trial.state == TrialState.WAITING


def _row(shared: SharedStudy, trial: FrozenTrial) -> Row:
    attrs = trial.user_attrs
    is_sampled = trial.state != TrialState.WAITING
    run = shared.run_of(trial) if is_sampled else Run(trial.system_attrs["fixed_params"], attrs[SEED])
    is_over = trial.state.is_finished()
    return Row(
        index=attrs[INDEX],
        run=run,
        seed=shared.sweep.config(run).train.seed,
        state=_STATES[trial.state],
        metrics=attrs.get(METRICS, {}) if is_over else {},
        directory=attrs.get(DIRECTORY, ""),
        message=attrs.get(MESSAGE, "") if is_over else "",
    )


def _configurations(rows: Sequence[Row], objectives: Sequence[str]) -> list[Configuration]:
    complete = [row for row in rows if row.state == "complete"]
    return [
        Configuration(
            group[0].run.labels,
            group,
            {name: sum(row.metrics[name] for row in group) / len(group) for name in objectives},
        )
        for group in group_by_configuration(complete, lambda row: key_of_labels(row.run.labels))
    ]


def _dominates(first: Configuration, second: Configuration) -> bool:
    """Return True if `first` Pareto-dominates `second`: no objective is worse and at least one is better."""
    signs = {name: 1 if DIRECTIONS[name] == "maximize" else -1 for name in first.means}
    gains = [sign * (first.means[name] - second.means[name]) for name, sign in signs.items()]
    return min(gains) >= 0 and max(gains) > 0


def _entry(row: Row) -> dict[str, Any]:
    return {
        "trial": row.number,
        "variant": row.run.labels.get(VARIANT),
        "parameters": {name: label for name, label in row.run.labels.items() if name != VARIANT},
        "seed": row.seed,
        "state": row.state,
        "metrics": dict(row.metrics),
        "directory": row.directory,
        "message": row.message,
    }


def _summary(configuration: Configuration) -> dict[str, Any]:
    return {
        "trials": [row.number for row in configuration.rows],
        "variant": configuration.labels.get(VARIANT),
        "parameters": {name: label for name, label in configuration.labels.items() if name != VARIANT},
        "means": dict(configuration.means),
    }


def _csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *names, "seed", *_CSV_METRICS, "directory", "message"])
    for row in rows:
        labels = [row.run.labels.get(name, "") for name in names]
        metrics = [row.metrics.get(name, "") for name in _CSV_METRICS.values()]
        writer.writerow([row.number, row.state, *labels, row.seed, *metrics, row.directory, row.message])
    return text.getvalue()


def _best_yaml(shared: SharedStudy, best: Configuration) -> str:
    """Return the YAML of the best configuration with its first seed and all defaults, for `vispeft train`."""
    row = best.rows[0]
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in best.means.items())
    seeds = f"mean over {len(best.rows)} seeds" if len(best.rows) > 1 else f"trial {row.number}"
    return (
        f"# The best of the sweep {shared.sweep.name!r}: {best.title}\n"
        f"# {metrics} ({seeds})\n"
        f"#\n#   vispeft train {shared.directory.best}\n\n"
        f"{dump_config(shared.sweep.config(row.run))}"
    )
