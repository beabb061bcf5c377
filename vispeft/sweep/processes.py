"""Worker processes of a sweep on one machine: started and stopped by the process of the command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

import torch

from vispeft.errors import TrainingError
from vispeft.io.child_processes import start_child
from vispeft.sweep.directory import SweepDirectory
from vispeft.sweep.study import SharedStudy
from vispeft.sweep.sweep import Sweep
from vispeft.sweep.worker import Say, interrupted_by_sigterm, work

INTERRUPTED = 130
# environment variable of worker processes: the session of the command that started them
SESSION_VARIABLE = "VISPEFT_SWEEP_SESSION"


def run_workers(sweep: Sweep, directory: SweepDirectory, session: str, say: Say) -> bool:
    """Start the worker processes and wait for them. Return True if they were interrupted.

    session: identifier of the command call
    """
    workers = [
        start_child(
            ["sweep", str(directory.sweep), "--out", str(directory.root)],
            {SESSION_VARIABLE: session, **environment},
            # workers receive Ctrl-C from this process alone
            start_new_session=True,
        )
        for environment in _environments(sweep.settings.workers)
    ]
    is_interrupted = False
    with interrupted_by_sigterm():
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
        raise TrainingError("All workers failed; their messages are above. The same command resumes the sweep.")
    return is_interrupted


def is_child() -> bool:
    """Return True if `run_workers` started this process."""
    return SESSION_VARIABLE in os.environ


def work_as_child(sweep: Sweep, directory: SweepDirectory, say: Say) -> bool:
    """Run trials in a process that `run_workers` started. Return True if interrupted."""
    return work(SharedStudy(sweep, directory, os.environ[SESSION_VARIABLE]), say)


def _environments(num_workers: int) -> list[Mapping[str, str]]:
    """Return the environment variables of each worker: GPUs are assigned in turn, cores are divided equally."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    gpus = [name for name in names if name] if torch.cuda.is_available() else []
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // num_workers))
    return [
        {"OMP_NUM_THREADS": threads, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})}
        for i in range(num_workers)
    ]
