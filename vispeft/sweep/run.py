"""Run of a sweep: its trials on one or several processes, then the comparison and the files of results."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from vispeft.sweep.comparison import compare_configurations
from vispeft.sweep.directory import SweepDirectory
from vispeft.sweep.processes import run_workers
from vispeft.sweep.results import Results, collect, write_results
from vispeft.sweep.study import SharedStudy
from vispeft.sweep.sweep import Sweep
from vispeft.sweep.worker import Say, work


@dataclass(frozen=True)
class SweepResult:
    """Result of one call of the command. is_interrupted: stopped by Ctrl-C; the same command resumes the sweep."""

    directory: SweepDirectory
    results: Results
    is_interrupted: bool


def run_sweep(sweep: Sweep, directory: SweepDirectory, say: Say, *, retries_failed: bool = False) -> SweepResult:
    """Run the remaining trials of a sweep in `sweep.workers` processes and write its results.

    say: function that receives progress messages, one line at a time
    """
    session = uuid.uuid4().hex
    shared = SharedStudy(sweep, directory, session)
    if retries_failed:
        say(f"{shared.queue_failed()} failed trials are run again")
    say(_status(shared))
    if sweep.settings.workers == 1 or _num_finished(shared) >= sweep.num_runs:
        is_interrupted = work(shared, say)
    else:
        is_interrupted = run_workers(sweep, directory, session, say)
    results = collect(shared)
    if not is_interrupted and _num_finished(shared) >= sweep.num_runs:
        compare_configurations(directory, results, say)
    write_results(shared, results)
    return SweepResult(directory, results, is_interrupted)


def _num_finished(shared: SharedStudy) -> int:
    return sum(trial.state.is_finished() for trial in shared.trials().values())


def _status(shared: SharedStudy) -> str:
    """Return a line about the state of a sweep at the start of the command."""
    num_done, num_runs = _num_finished(shared), shared.sweep.num_runs
    name = f"{shared.directory.root}, study {shared.sweep.study_name}"
    if num_done >= num_runs:
        return f"Sweep {name}: all {num_runs} trials are done. For a new sweep, choose another `sweep.name`."
    if num_done:
        return f"Sweep {name}: resumed, {num_done} of {num_runs} trials are done"
    return f"Sweep {name}: {num_runs} trials"
