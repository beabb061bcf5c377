"""The work of a sweep: one process takes trial after trial; several share the study."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from optuna.trial import TrialState

from vispeft.errors import TrainingError
from vispeft.sweep.comparing import compare_configurations
from vispeft.sweep.directory import SweepDirectory
from vispeft.sweep.results import Results, collect, write_results
from vispeft.sweep.storage import STORAGE_ERRORS
from vispeft.sweep.study import Claim, SharedStudy, TrialLostError
from vispeft.sweep.sweep import Sweep
from vispeft.sweep.trial import Outcome, SharedSets, run_trial
from vispeft.training.memory import keep_freed_memory
from vispeft.training.progress import format_bytes, format_seconds

Say = Callable[[str], None]
INTERRUPTED = 130
# set for the processes that a sweep starts itself: the name of its session
SESSION_VARIABLE = "VISPEFT_SWEEP_SESSION"
_SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True)
class SweepResult:
    """Result of one call of the command. is_interrupted: stopped by Ctrl-C; the same command continues the sweep."""

    directory: SweepDirectory
    results: Results
    is_interrupted: bool


def run_sweep(sweep: Sweep, directory: SweepDirectory, say: Say, *, retries_failed: bool = False) -> SweepResult:
    """Run what is left of a sweep, on as many processes as it asks for, and write its results.

    say: receives messages on the progress, one line at a time
    """
    session = uuid.uuid4().hex
    shared = SharedStudy(sweep, directory, session)
    if retries_failed:
        say(f"{shared.queue_failed()} failed trials are tried again")
    _greet(shared, say)
    if sweep.settings.workers == 1 or _is_complete(shared):
        is_interrupted = work(shared, say)
    else:
        is_interrupted = _run_workers(sweep, directory, session, say)
    results = collect(shared)
    if not is_interrupted and _is_complete(shared):
        compare_configurations(directory, results, say)
    write_results(shared, results)
    return SweepResult(directory, results, is_interrupted)


def work(shared: SharedStudy, say: Say) -> bool:
    """Take trials until none is left. Returns True if interrupted."""
    keep_freed_memory()
    sets = SharedSets()
    is_alone = shared.sweep.settings.workers == 1
    with _stops_on_termination():
        try:
            while True:
                turn = shared.take()
                if turn.claim is not None:
                    if not _work_on(shared, turn.claim, sets, say, shows_progress=is_alone and sys.stderr.isatty()):
                        return True
                elif turn.is_over:
                    return False
                else:
                    # others work on the last trials; should they die, those are ours
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:
            return True
        except STORAGE_ERRORS as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TrainingError(
                f"The study's storage failed: {reason} Nothing is lost: the same command goes on."
            ) from error


def work_as_child(sweep: Sweep, directory: SweepDirectory, say: Say) -> bool:
    """Take trials in a process that `run_sweep` started, and stop when the parent process ends."""
    watcher = threading.Thread(target=_end_with_parent, daemon=True)
    watcher.start()
    return work(SharedStudy(sweep, directory, os.environ[SESSION_VARIABLE]), say)


def _work_on(shared: SharedStudy, claim: Claim, sets: SharedSets, say: Say, *, shows_progress: bool) -> bool:
    """Run one trial and report it. Returns False if it was interrupted."""
    attempt = f" (attempt {claim.attempt})" if claim.attempt > 1 else ""
    if shows_progress:
        say(f"{_number(shared, claim)} {claim.run.title}{attempt}")
    try:
        outcome = run_trial(shared, claim, sets, shows_progress=shows_progress)
    except TrialLostError as error:
        say(f"{_number(shared, claim)} {claim.run.title}: {error}")
        return True
    if outcome.state is None:
        return False
    say(f"{_number(shared, claim)} {claim.run.title}{attempt}: {_described(outcome)}")
    write_results(shared, collect(shared))
    return True


def _described(outcome: Outcome) -> str:
    """Return the outcome of a trial in words, for its line of output."""
    if outcome.state == TrialState.FAIL:
        return f"failed: {outcome.message}"
    figures = outcome.figures
    found = [f"AP {figures['segm/AP']:.3f}", f"AP50 {figures['segm/AP50']:.3f}"] if "segm/AP" in figures else []
    if outcome.state == TrialState.PRUNED:
        return ", ".join([*found, outcome.message])
    costs = [
        f"{figures['trainable_params']:,.0f} trained",
        format_seconds(figures["train_seconds"]),
        format_bytes(figures["peak_memory_bytes"]),
    ]
    return ", ".join([*found, *costs])


def _number(shared: SharedStudy, claim: Claim) -> str:
    return f"[{claim.index + 1}/{shared.sweep.num_runs}]"


def _greet(shared: SharedStudy, say: Say) -> None:
    done = sum(trial.state.is_finished() for trial in shared.trials().values())
    total = shared.sweep.num_runs
    where = f"{shared.directory.root}, study {shared.sweep.study_name}"
    if done >= total:
        say(f"Sweep {where}: all {total} trials are done. Another `sweep.name` begins anew.")
    elif done:
        say(f"Sweep {where}: going on, {done} of {total} trials are done")
    else:
        say(f"Sweep {where}: {total} trials")


def _is_complete(shared: SharedStudy) -> bool:
    return sum(trial.state.is_finished() for trial in shared.trials().values()) >= shared.sweep.num_runs


def _run_workers(sweep: Sweep, directory: SweepDirectory, session: str, say: Say) -> bool:
    """Start the workers, wait for them, and pass Ctrl-C on. Returns True if they were interrupted."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "vispeft", "sweep", str(directory.sweep), "--out", str(directory.root)],
            env={**os.environ, SESSION_VARIABLE: session, **environment},
            # they end when this pipe does, and hear of Ctrl-C from here alone
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        for environment in _environments(sweep.settings.workers)
    ]
    is_interrupted = False
    with _stops_on_termination():
        while any(worker.poll() is None for worker in workers):
            try:
                time.sleep(0.2)
            except KeyboardInterrupt:
                is_interrupted = True
                for worker in workers:
                    worker.send_signal(signal.SIGINT)
    failed = [worker.returncode for worker in workers if worker.returncode not in (0, INTERRUPTED)]
    killed = [code for code in failed if code < 0]
    if killed and not is_interrupted:
        say(f"{len(killed)} of {len(workers)} workers were killed (signal {-killed[0]}).")
    if len(failed) == len(workers) and not is_interrupted:
        raise TrainingError("No worker is left; what they said stands above. The same command goes on.")
    return is_interrupted


def _environments(num_workers: int) -> list[Mapping[str, str]]:
    """Return each worker's environment variables: GPUs are dealt out in turn, cores are shared equally as threads."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    gpus = [name for name in names if name] if torch.cuda.is_available() else []
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // num_workers))
    return [
        {"OMP_NUM_THREADS": threads, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})}
        for i in range(num_workers)
    ]


def _end_with_parent() -> None:
    """Stop this process by SIGTERM once the other end of its standard input is closed, when the parent has ended."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _stops_on_termination() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C in the `with` block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def is_child() -> bool:
    """Tell whether this process was started by `run_sweep`."""
    return SESSION_VARIABLE in os.environ
