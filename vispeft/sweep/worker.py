"""Worker process of a sweep: runs trials of the study, which it shares with other workers."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from optuna.trial import TrialState

from vispeft.errors import TrainingError
from vispeft.sweep.results import collect, write_results
from vispeft.sweep.storage import STORAGE_ERRORS
from vispeft.sweep.study import Claim, SharedStudy, TrialLostError
from vispeft.sweep.trial import Outcome, SharedSets, run_trial
from vispeft.training.memory import keep_freed_memory
from vispeft.training.progress import format_bytes, format_seconds

Say = Callable[[str], None]
_POLL_SECONDS = 2.0


def work(shared: SharedStudy, say: Say) -> bool:
    """Run trials until none is left. Return True if interrupted."""
    keep_freed_memory()
    sets = SharedSets()
    shows_progress = shared.sweep.settings.workers == 1 and sys.stderr.isatty()
    with interrupted_by_sigterm():
        try:
            while True:
                turn = shared.take()
                if turn.claim is not None:
                    if not _run_claim(shared, turn.claim, sets, say, shows_progress=shows_progress):
                        return True
                elif turn.is_over:
                    return False
                else:
                    # other workers run the last trials; this one takes over the trial of a worker that dies
                    time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            return True
        except STORAGE_ERRORS as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TrainingError(
                f"The study's storage failed: {reason} No result is lost: the same command resumes the sweep."
            ) from error


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C in the `with` block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _run_claim(shared: SharedStudy, claim: Claim, sets: SharedSets, say: Say, *, shows_progress: bool) -> bool:
    """Run one trial and report it. Return False if it was interrupted."""
    name = f"[{claim.index + 1}/{shared.sweep.num_runs}] {claim.run.title}"
    attempt = f" (attempt {claim.attempt})" if claim.attempt > 1 else ""
    if shows_progress:
        say(name + attempt)
    try:
        outcome = run_trial(shared, claim, sets, shows_progress=shows_progress)
    except TrialLostError as error:
        say(f"{name}: {error}")
        return True
    if outcome.state is None:
        return False
    say(f"{name}{attempt}: {_outcome_text(outcome)}")
    write_results(shared, collect(shared))
    return True


def _outcome_text(outcome: Outcome) -> str:
    """Return the outcome of a trial as text for its line of output."""
    if outcome.state == TrialState.FAIL:
        return f"failed: {outcome.message}"
    metrics = outcome.metrics
    scores = [f"AP {metrics['segm/AP']:.3f}", f"AP50 {metrics['segm/AP50']:.3f}"] if "segm/AP" in metrics else []
    if outcome.state == TrialState.PRUNED:
        return ", ".join([*scores, outcome.message])
    costs = [
        f"{metrics['trainable_params']:,.0f} trained",
        format_seconds(metrics["train_seconds"]),
        format_bytes(metrics["peak_memory_bytes"]),
    ]
    return ", ".join([*scores, *costs])


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
