"""One trial: an ordinary run that reports its evaluations to the study and may be pruned."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from vispeft.config import Config
from vispeft.engine import DataSets, RunDirectory, read_sets, train_run
from vispeft.errors import TrainingError, VispeftError
from vispeft.io.metrics_file import read_metrics
from vispeft.sweep.storage import STORAGE_ERRORS, heartbeats
from vispeft.sweep.study import Claim, SharedStudy, TrialLostError
from vispeft.training.callbacks.base import Callback
from vispeft.training.feature_cache.store import FeatureMemory
from vispeft.training.memory import release_memory

# the metric that pruners compare
PRUNING_METRIC = "segm/AP"


class TrialPrunedError(TrainingError):
    """Signal that the pruner stops the trial."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trial. state: COMPLETE, PRUNED, FAIL, or None if it was interrupted and can be resumed.

    metrics: metrics and costs, such as `segm/AP` and `trainable_params`. A pruned trial has those of its best
        evaluation.
    """

    state: TrialState | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


# keys of the model on which classes and channels of a data set depend
_OF_SETS = {"weights", "backbone", "backbone_options", "keep_classes", "weights_classes", "in_chans"}


class SharedSets:
    """Data sets and kept features that the trials of one process share.

    Data sets are read once for each pair of annotation files and folders, and each form in which a model takes them.

    memory: storage of the features for `train.feature_cache: memory`
    """

    def __init__(self) -> None:
        self._sets: dict[str, DataSets] = {}
        self.memory = FeatureMemory()

    def of(self, config: Config) -> DataSets:
        """Return the data sets that a configuration names."""
        key = config.data.train.model_dump_json() + config.data.val.model_dump_json()
        key += config.model.model_dump_json(include=_OF_SETS)
        if key not in self._sets:
            self._sets[key] = read_sets(config)
        return self._sets[key]


def run_trial(shared: SharedStudy, claim: Claim, sets: SharedSets, *, shows_progress: bool) -> Outcome:
    """Train the run of a claim, from its checkpoint if there is one, and write the outcome into the study."""
    directory = shared.directory.trial(claim.index)
    log_path = shared.directory.trial_log(claim.index)
    with heartbeats(shared.storage, claim.trial_id), _log_of(log_path, is_used=not shows_progress):
        try:
            outcome = _train(shared, claim, directory, sets)
        # another worker owns the trial, or will take it over
        except (TrialLostError, *STORAGE_ERRORS):
            claim.lock.release()
            raise
        except TrialPrunedError as error:
            outcome = Outcome(TrialState.PRUNED, _best_evaluation(directory), str(error))
        except KeyboardInterrupt:
            outcome = Outcome(None)
        # the failure of one trial must not stop the others
        except Exception as error:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            with log_path.open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            outcome = Outcome(TrialState.FAIL, message=_message(error))
    _write_outcome(shared, claim, outcome)
    release_memory()
    return outcome


def _train(shared: SharedStudy, claim: Claim, directory: RunDirectory, sets: SharedSets) -> Outcome:
    """Train the run of a claim, from its checkpoint if there is one."""
    config = shared.sweep.config(claim.run)
    is_begun = directory.config.is_file()
    if is_begun:
        _report_evaluations(claim, directory)
        _check_pruning(shared, claim)
    result = train_run(
        config,
        directory,
        resume=is_begun,
        sets=sets.of(config),
        memory=sets.memory,
        callbacks=[Callback(on_evaluation=partial(_after_evaluation, shared, claim, directory))],
    )
    if result.summary is None:
        return Outcome(None)
    return Outcome(TrialState.COMPLETE, metrics_of(result.summary))


def metrics_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics and costs that a sweep keeps from a run's summary.json."""
    masks = {f"segm/{name}": value for name, value in summary["segm"].items()}
    boxes = {f"bbox/{name}": value for name, value in summary["bbox"].items()}
    costs = {
        name: summary[name]
        for name in (
            *("trainable_params", "trainable_percent", "adapter_bytes"),
            *("steps", "best_step", "train_seconds", "evaluate_seconds", "peak_memory_bytes"),
        )
    }
    return {**masks, **boxes, **costs}


def _write_outcome(shared: SharedStudy, claim: Claim, outcome: Outcome) -> None:
    """Write the outcome into the study, or give the trial back if it was interrupted."""
    if outcome.state is None:
        shared.release(claim)
        return
    values = None
    if outcome.state == TrialState.COMPLETE:
        values = [float(outcome.metrics[name]) for name in shared.sweep.settings.objectives]
    shared.tell(claim, outcome.state, values=values, metrics=outcome.metrics, message=outcome.message)


def _after_evaluation(
    shared: SharedStudy, claim: Claim, directory: RunDirectory, step: int, metrics: Mapping[str, float]
) -> None:
    """Check that this worker still owns the trial, report the evaluation, and ask the pruner."""
    shared.check_own(claim)
    _report_evaluations(claim, directory)
    if step < (directory.load_config().train.steps or 0):
        _check_pruning(shared, claim)


def _report_evaluations(claim: Claim, directory: RunDirectory) -> None:
    """Report evaluations that are missing in the study. Optuna allows no reports with several objectives."""
    if len(claim.trial.study.directions) > 1:
        return
    known = claim.trial.storage.get_trial(claim.trial_id).intermediate_values
    for step, value in _evaluations(directory).items():
        if step not in known:
            claim.trial.report(value, step)


def _check_pruning(shared: SharedStudy, claim: Claim) -> None:
    """Raise a TrialPrunedError if the pruner stops the trial."""
    if shared.sweep.settings.pruner != "none" and claim.trial.should_prune():
        raise TrialPrunedError(f"stopped early by the {shared.sweep.settings.pruner} pruner")


def _evaluations(directory: RunDirectory) -> dict[int, float]:
    """Return the mask AP of each evaluation in metrics.jsonl, by step."""
    lines = read_metrics(directory.metrics)
    found = {line["step"]: line.get(PRUNING_METRIC) for line in lines if line["split"] == "val"}
    return {step: value for step, value in found.items() if value is not None}


def _best_evaluation(directory: RunDirectory) -> dict[str, float]:
    """Return the metrics of the best evaluation of an unfinished run."""
    lines = [line for line in read_metrics(directory.metrics) if line["split"] == "val"]
    best = max(lines, key=lambda line: line[PRUNING_METRIC], default={})
    metrics = {name: value for name, value in best.items() if "/" in name and value is not None}
    return {**metrics, **({"best_step": best["step"]} if best else {})}


@contextlib.contextmanager
def _log_of(path: Path, *, is_used: bool) -> Iterator[None]:
    """Append standard error to a file during the `with` block."""
    if not is_used:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        yield


def _message(error: Exception) -> str:
    """Return the message of an error, as the command line shows it."""
    if isinstance(error, VispeftError):
        return str(error)
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first_line}"
