"""Study that workers share: the owner and the outcome of each trial.

Optuna stores the trials. Workers claim trials under one lock of the study, and the choice depends on the stored trials
alone. A worker may therefore die at any point: another worker takes over its unfinished trial.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from vispeft.errors import TrainingError
from vispeft.io.locks import FileLock
from vispeft.io.metrics_file import read_metrics
from vispeft.sweep.directory import SweepDirectory
from vispeft.sweep.locks import StudyLock
from vispeft.sweep.schema import DIRECTIONS
from vispeft.sweep.space import Dimension
from vispeft.sweep.storage import machine_id, open_storage, quiet, storage_url
from vispeft.sweep.sweep import Run, Sweep

INDEX, SEED, OWNER, SESSION = "index", "seed", "owner", "session"
ATTEMPTS, PROGRESS = "attempts", "progress"
METRICS, MESSAGE, DIRECTORY = "metrics", "message", "directory"
# a session stops if this number of its first trials all fail
_MAX_FIRST_FAILURES = 3
# a trial counts as failed if its process dies this often without progress
_MAX_ATTEMPTS = 10


class TrialLostError(TrainingError):
    """Error of a worker whose trial another worker has taken over."""


@dataclass(frozen=True)
class Claim:
    """A trial that this worker runs, until its outcome is written or it is released or lost.

    attempt: 1, plus the number of times that its process died without progress
    """

    trial: optuna.Trial
    index: int
    run: Run
    owner: Mapping[str, str]
    lock: FileLock
    attempt: int

    @property
    def trial_id(self) -> int:
        return self.trial._trial_id


@dataclass(frozen=True)
class Turn:
    """Result of a request for a trial. claim: None if no trial is free now; is_over: no trial will become free"""

    claim: Claim | None
    is_over: bool


class SharedStudy:
    """A sweep's study in its storage.

    session: identifier of the command call that this worker belongs to
    """

    def __init__(self, sweep: Sweep, directory: SweepDirectory, session: str) -> None:
        url = storage_url(directory.storage_url(sweep))
        self.sweep = sweep
        self.directory = directory
        self.session = session
        self._worker = uuid.uuid4().hex
        self.storage = open_storage(url, sweep.settings.heartbeat)
        self._lock = StudyLock(url, sweep.study_name)
        with self._lock.held(), quiet():
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=sweep.study_name,
                directions=[DIRECTIONS[name] for name in sweep.settings.objectives],
                sampler=optuna.samplers.RandomSampler(),
                pruner=_pruner(sweep.settings.pruner),
                load_if_exists=True,
            )
            self.study.set_metric_names(list(sweep.settings.objectives))

    def trials(self) -> dict[int, FrozenTrial]:
        """Return the last trial of every started run, by its index, in order."""
        return _by_index(self.study.get_trials(deepcopy=False))

    def take(self) -> Turn:
        """Claim the next trial for this worker: one of a dead worker, a waiting one, or a new one."""
        with self._lock.held(), quiet():
            trials = self.study.get_trials(deepcopy=False)
            self._check_first_failures(trials)
            for frozen in trials:
                if frozen.state == TrialState.RUNNING:
                    claim = self._taken_over(frozen)
                    if claim is not None:
                        return Turn(claim, False)
            claim = self._next(trials)
            if claim is not None:
                return Turn(claim, False)
            done = [t for t in _by_index(self.study.get_trials(deepcopy=False)).values() if t.state.is_finished()]
            return Turn(None, len(done) >= self.sweep.num_runs)

    def tell(
        self,
        claim: Claim,
        state: TrialState,
        *,
        values: Sequence[float] | None = None,
        metrics: Mapping[str, Any] | None = None,
        message: str = "",
    ) -> None:
        """Write the outcome of a trial, once."""
        try:
            with self._lock.held(), quiet():
                self.check_own(claim)
                claim.trial.set_user_attr(METRICS, dict(metrics or {}))
                claim.trial.set_user_attr(MESSAGE, message)
                self.study.tell(claim.trial, values, state)
        except BaseException:
            claim.lock.release()
            raise
        claim.lock.release(remove=True)

    def release(self, claim: Claim) -> None:
        """Give a trial back for the next worker. This does not count as a failed attempt."""
        with self._lock.held():
            self.check_own(claim)
            claim.trial.set_user_attr(ATTEMPTS, 0)
            claim.trial.set_user_attr(OWNER, None)
        claim.lock.release()

    def check_own(self, claim: Claim) -> None:
        """Raise `TrialLostError` if another worker owns the trial now."""
        frozen = self.storage.get_trial(claim.trial_id)
        if frozen.state != TrialState.RUNNING or frozen.user_attrs.get(OWNER) != claim.owner:
            raise TrialLostError(f"Another worker has taken over trial {claim.index}, because this one seemed dead.")

    def queue_failed(self) -> int:
        """Put every failed run back into the queue, and return the number of failed runs."""
        with self._lock.held(), quiet():
            failed = {index: t for index, t in self.trials().items() if t.state == TrialState.FAIL}
            waiting = {t.user_attrs[INDEX] for t in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))}
            for index in failed.keys() - waiting:
                frozen = failed[index]
                attrs = {INDEX: index, SEED: frozen.user_attrs[SEED]}
                self.study.enqueue_trial(frozen.params, user_attrs=attrs)
            return len(failed)

    def run_of(self, frozen: FrozenTrial) -> Run:
        """Return the run of a trial."""
        return Run(self.sweep.space.choose(lambda dimension: frozen.params[dimension.name]), frozen.user_attrs[SEED])

    def _check_first_failures(self, trials: Sequence[FrozenTrial]) -> None:
        """Raise a TrainingError if the first trials of this session all failed."""
        own = [t for t in trials if t.user_attrs.get(SESSION) == self.session and t.state.is_finished()]
        failed = [t for t in own if t.state == TrialState.FAIL]
        if len(failed) >= _MAX_FIRST_FAILURES and len(failed) == len(own):
            raise TrainingError(
                f"The sweep stopped because its first {len(failed)} trials all failed. The last error: "
                f"{failed[-1].user_attrs[MESSAGE]} Fix this and run the command again with --retry-failed."
            )

    def _taken_over(self, frozen: FrozenTrial) -> Claim | None:
        """Claim a running trial of a dead worker. Return None if the worker lives or no attempt is left."""
        index = frozen.user_attrs.get(INDEX)
        owner = frozen.user_attrs.get(OWNER)
        if index is not None and owner is not None and not self._seems_dead(frozen, owner):
            return None
        claim = self._claimed(optuna.Trial(self.study, frozen._trial_id), frozen)
        if claim is None or claim.attempt <= _MAX_ATTEMPTS:
            return claim
        message = f"Its process died {_MAX_ATTEMPTS} times without progress; the memory may be too small."
        claim.trial.set_user_attr(METRICS, {})
        claim.trial.set_user_attr(MESSAGE, message)
        self.study.tell(claim.trial, state=TrialState.FAIL)
        claim.lock.release(remove=True)
        return None

    def _seems_dead(self, frozen: FrozenTrial, owner: Mapping[str, str]) -> bool:
        """Return True if a trial's owner is dead: by its lock on this machine, by its heartbeats elsewhere."""
        path = self.directory.trial_lock(frozen.user_attrs[INDEX])
        if owner["machine"] == machine_id() and owner["lock"] == str(path.resolve()) and path.exists():
            lock = FileLock.try_hold(path)
            if lock is None:
                return False
            lock.release()
            return True
        return frozen._trial_id in self.storage._get_stale_trial_ids(self.study._study_id)

    def _next(self, trials: Sequence[FrozenTrial]) -> Claim | None:
        """Claim a waiting trial, or the first run without a trial."""
        if not any(t.state == TrialState.WAITING for t in trials):
            known = _by_index(trials)
            index = next((i for i in range(self.sweep.num_runs) if i not in known), None)
            if index is None:
                return None
            run = self._known_run(index, known)
            if run is not None:
                self.study.enqueue_trial(dict(run.labels), user_attrs={INDEX: index, SEED: run.seed})
        trial = self.study.ask()
        return self._claimed(trial, self.storage.get_trial(trial._trial_id))

    def _known_run(self, index: int, known: Mapping[int, FrozenTrial]) -> Run | None:
        """Return the run of an index, or None if the sampler chooses its point."""
        if self.sweep.settings.sampler == "grid":
            return self.sweep.grid[index]
        place = index % len(self.sweep.seeds)
        if place == 0:
            return None
        return Run(self.run_of(known[index - place]).labels, self.sweep.seeds[place])

    def _claimed(self, trial: optuna.Trial, frozen: FrozenTrial) -> Claim | None:
        """Claim a running trial, even a partly written one; None if another process holds its lock."""
        attrs = frozen.user_attrs
        index = attrs.get(INDEX)
        if index is None:
            known = self.trials()
            index = next(i for i in itertools.count() if i not in known)
            trial.set_user_attr(SEED, self.sweep.seeds[0])
            trial.set_user_attr(INDEX, index)
        lock = FileLock.try_hold(self.directory.trial_lock(index))
        if lock is None:
            return None
        try:
            run = Run(
                self.sweep.space.choose(partial(self._suggest, trial, index)), attrs.get(SEED, self.sweep.seeds[0])
            )
            return self._owned(trial, index, run, lock, attrs)
        except BaseException:
            lock.release()
            raise

    def _owned(self, trial: optuna.Trial, index: int, run: Run, lock: FileLock, attrs: Mapping[str, Any]) -> Claim:
        """Write this worker into a trial as its owner, the last attribute. attrs: earlier attributes of the trial"""
        self.storage.record_heartbeat(trial._trial_id)
        progress = self._progress(index)
        attempt = attrs.get(ATTEMPTS, 0) + 1 if progress <= attrs.get(PROGRESS, -1) else 1
        place = str(self.directory.trial_lock(index).resolve())
        owner = {"machine": machine_id(), "lock": place, "worker": self._worker}
        for name, value in (
            (PROGRESS, progress),
            (ATTEMPTS, attempt),
            (SESSION, self.session),
            (DIRECTORY, str(self.directory.trial(index).root)),
            (OWNER, owner),
        ):
            trial.set_user_attr(name, value)
        return Claim(trial, index, run, owner, lock, attempt)

    def _progress(self, index: int) -> int:
        """Return the last step in the metrics of a trial's run directory; 0 without one."""
        return max((line["step"] for line in read_metrics(self.directory.trial(index).metrics)), default=0)

    def _suggest(self, trial: optuna.Trial, index: int, dimension: Dimension) -> Any:
        """Return the label of a dimension: the stored one, or else the sampler's choice."""
        self.study.sampler = self._sampler(index, dimension)
        entry = dimension.entry
        if entry is None:
            return trial.suggest_categorical(dimension.name, dimension.labels)
        if entry.is_whole:
            step = entry.step or 1
            high = entry.high - (entry.high - entry.low) % step
            return trial.suggest_int(dimension.name, entry.low, high, step=step, log=entry.log)
        return trial.suggest_float(dimension.name, entry.low, entry.high, step=entry.step, log=entry.log)

    def _sampler(self, index: int, dimension: Dimension) -> optuna.samplers.BaseSampler:
        """Return the sampler of one dimension, seeded by trial and dimension, so that a restart repeats the choice."""
        text = f"{self.sweep.settings.sampler_seed} {index} {dimension.name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        if self.sweep.settings.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)


def _by_index(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the last trial of each index, in order."""
    found = {t.user_attrs[INDEX]: t for t in trials if INDEX in t.user_attrs}
    return dict(sorted(found.items()))


def _pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner()
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner()
    return optuna.pruners.NopPruner()
