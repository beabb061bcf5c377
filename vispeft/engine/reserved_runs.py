"""Choice of the directory of a run, which one process at a time writes.

The directory is reserved at once, although its first files are written after the data are read and the model is built:
several trainings that begin together, as the jobs of a cluster do, then get different directories.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vispeft.engine.run_directory import RunDirectory
from vispeft.errors import TrainingError, writing
from vispeft.io import run_layout
from vispeft.io.atomic import PARTIAL_SUFFIX
from vispeft.io.locks import FileLock, LocksMissingError

LOCK_FILE = ".lock"
# set by launchers of several processes of one run; above zero in all but the first
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


@contextlib.contextmanager
def new_run_directory(out: Path | None, name: str) -> Iterator[RunDirectory]:
    """Context with a directory that holds no work yet, reserved for this process: `out`, or the next `runs/<name>-<n>`.

    A directory that is still empty at the end is removed. Processes of a run after its first reserve nothing: they
    take over the first one's directory once they are connected.
    """
    if out is None:
        root = run_layout.free_directory(name) if _follows() else _made_directory(name)
    elif out.exists() and (not out.is_dir() or not _holds_no_work(out)):
        raise TrainingError(f"`{out}` is there already. Give another --out, or go on with it by --resume.")
    else:
        root = out
    with _reserved(root):
        yield RunDirectory(root)


@contextlib.contextmanager
def begun_run_directory(out: Path | None, name: str) -> Iterator[RunDirectory]:
    """Context with the directory to resume, reserved: `out`, or the `runs/<name>-<n>` of the highest number."""
    if out is None:
        # one without a configuration is that of a run that another process is about to begin
        found = [path for path in run_layout.numbered_directories(name) if RunDirectory(path).config.is_file()]
        if not found:
            raise TrainingError(
                f"There is no run `runs/{name}-<n>` to resume. Name it by --out, or leave out --resume."
            )
        out = found[0]
    begun = RunDirectory(out)
    if not begun.config.is_file():
        raise TrainingError(
            f"`{out}` must be a run directory to resume, but has no {run_layout.CONFIG_FILE}. Leave out --resume."
        )
    with _reserved(out):
        yield begun


def _follows() -> bool:
    """Return True in the processes of a run after its first, before they are connected."""
    return any(os.environ.get(name, "0") not in {"", "0"} for name in _RANKS)


def _made_directory(name: str) -> Path:
    """Make and return the first `runs/<name>-<n>` that does not exist."""
    while True:
        root = run_layout.free_directory(name)
        with writing(root, TrainingError):
            root.parent.mkdir(parents=True, exist_ok=True)
            # another process may have made it since
            with contextlib.suppress(FileExistsError):
                root.mkdir()
                return root


@contextlib.contextmanager
def _reserved(root: Path) -> Iterator[None]:
    """Hold the lock of a directory in the `with` block; remove the directory if nothing is in it at the end."""
    if _follows():
        yield
        return
    try:
        lock = FileLock.try_hold(root / LOCK_FILE)
    except LocksMissingError:
        # a network file system may have none
        yield
        return
    if lock is None:
        raise TrainingError(f"`{root}` is being written by another process. Wait for its end, or give another --out.")
    try:
        yield
    finally:
        lock.release(remove=True)
        with contextlib.suppress(OSError):
            root.rmdir()


def _holds_no_work(directory: Path) -> bool:
    """Tell whether a directory is empty, or holds a run that ended before it wrote anything to resume from."""
    begun = RunDirectory(directory)
    before_work = {begun.environment, begun.annotations, begun.metrics}
    if begun.environment.exists():
        # without the environment, the configuration may be the user's own
        before_work.add(begun.config)
    # the lock has a journal of SQLite beside it while it is held
    return all(
        path in before_work
        or path.name == run_layout.TENSORBOARD_DIR
        or path.suffix == PARTIAL_SUFFIX
        or path.name.startswith(LOCK_FILE)
        for path in directory.iterdir()
    )
