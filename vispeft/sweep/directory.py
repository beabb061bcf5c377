"""Directory of a sweep: the paths of its files, and the choice of the directory that a command uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vispeft.engine import RunDirectory
from vispeft.errors import ConfigError, TrainingError
from vispeft.io.atomic import write_text
from vispeft.io.run_layout import REPORT_FILE, RUNS, free_directory, numbered_directories
from vispeft.io.sweep_layout import (
    BEST_FILE,
    COMPARISON_FILE,
    RESULTS_CSV,
    RESULTS_JSON,
    STUDY_FILE,
    SWEEP_FILE,
    trial_directory,
    trial_name,
)
from vispeft.sweep.sweep import Sweep, load_sweep


@dataclass(frozen=True)
class SweepDirectory:
    """The files of one sweep under `root`."""

    root: Path

    @property
    def sweep(self) -> Path:
        return self.root / SWEEP_FILE

    @property
    def study(self) -> Path:
        return self.root / STUDY_FILE

    @property
    def results_json(self) -> Path:
        return self.root / RESULTS_JSON

    @property
    def results_csv(self) -> Path:
        return self.root / RESULTS_CSV

    @property
    def best(self) -> Path:
        return self.root / BEST_FILE

    @property
    def comparison(self) -> Path:
        return self.root / COMPARISON_FILE

    @property
    def report(self) -> Path:
        return self.root / REPORT_FILE

    def trial(self, index: int) -> RunDirectory:
        """Return the run directory of a trial. Directory names count from 1, `index` from 0."""
        return RunDirectory(trial_directory(self.root, index + 1))

    def trial_log(self, index: int) -> Path:
        """Return the path of a trial's log."""
        return self.root / "logs" / f"{trial_name(index + 1)}.txt"

    def trial_lock(self, index: int) -> Path:
        """Return the path of the lock that the process working on a trial holds."""
        return self.root / "locks" / trial_name(index + 1)

    def storage_url(self, sweep: Sweep) -> str:
        """Return the URL of the study's storage."""
        return sweep.settings.storage or f"sqlite:///{self.study}"


def open_sweep_directory(sweep: Sweep, out: Path | None) -> SweepDirectory:
    """Return the directory of the sweep: `out`, or the last `runs/<name>-<n>` of this sweep, or a new one."""
    directory = _last_directory(sweep) if out is None else _given_directory(sweep, out)
    if directory is None:
        directory = _create(sweep, out)
    write_text(directory.sweep, sweep.dump(), raises=TrainingError)
    return directory


def _last_directory(sweep: Sweep) -> SweepDirectory | None:
    """Return the last `runs/<name>-<n>` of this sweep, or None."""
    for path in numbered_directories(sweep.name):
        directory = SweepDirectory(path)
        if directory.sweep.is_file() and _is_same(sweep, directory):
            return directory
    return None


def _is_same(sweep: Sweep, directory: SweepDirectory) -> bool:
    """Return True if a directory belongs to this sweep."""
    try:
        return not load_sweep(directory.sweep).differences(sweep)
    except ConfigError:
        # written by another version, or edited
        return False


def _given_directory(sweep: Sweep, out: Path) -> SweepDirectory | None:
    """Return `out` if it belongs to this sweep, None if it is missing or empty. Raise an error for other content."""
    directory = SweepDirectory(out)
    if directory.sweep.is_file():
        different = load_sweep(directory.sweep).differences(sweep)
        if different:
            keys = ", ".join(f"`{key}`" for key in different[:6])
            raise ConfigError(
                f"`{out}` contains a sweep with other settings: {keys} differ. Use the same values, or another --out."
            )
        return directory
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"`{out}` exists already and contains no sweep. Give another --out.")
    return None


def _create(sweep: Sweep, out: Path | None) -> SweepDirectory:
    """Create the directory with its sweep.yaml. Processes that do this at the same time get the same directory."""
    parent = RUNS if out is None else out.parent
    parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{sweep.name}-", dir=parent))
    made.chmod(0o755)
    write_text(SweepDirectory(made).sweep, sweep.dump(), raises=TrainingError)
    try:
        while True:
            found = _last_directory(sweep) if out is None else _given_directory(sweep, out)
            if found is not None:
                return found
            target = free_directory(sweep.name) if out is None else out
            try:
                os.rename(made, target)
            except OSError:
                if not target.exists():
                    raise
                continue
            return SweepDirectory(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
