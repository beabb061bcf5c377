"""Directory of a sweep: the paths of its files, and the choice of the directory that a command uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vispeft.engine import RunDirectory
from vispeft.errors import ConfigError, TrainingError
from vispeft.sweep.sweep import Sweep, load_sweep

_RUNS = Path("runs")


@dataclass(frozen=True)
class SweepDirectory:
    """The files of one sweep under `root`."""

    root: Path

    @property
    def sweep(self) -> Path:
        return self.root / "sweep.yaml"

    @property
    def study(self) -> Path:
        return self.root / "study.db"

    @property
    def results_json(self) -> Path:
        return self.root / "results.json"

    @property
    def results_csv(self) -> Path:
        return self.root / "results.csv"

    @property
    def best(self) -> Path:
        return self.root / "best.yaml"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def trial(self, index: int) -> RunDirectory:
        """Return the run directory of a trial. Directory names count from 1, `index` from 0."""
        return RunDirectory(self.root / "trials" / f"{index + 1:04d}")

    def trial_log(self, index: int) -> Path:
        """Return the path of a trial's log."""
        return self.root / "logs" / f"{index + 1:04d}.txt"

    def trial_lock(self, index: int) -> Path:
        """Return the path of the lock that the process working on a trial holds."""
        return self.root / "locks" / f"{index + 1:04d}"

    def storage_url(self, sweep: Sweep) -> str:
        """Return the URL of the study's storage."""
        return sweep.settings.storage or f"sqlite:///{self.study}"


def open_sweep_directory(sweep: Sweep, out: Path | None) -> SweepDirectory:
    """Return the directory of the sweep: `out`, or the last `runs/<name>-<n>` of this sweep, or a new one."""
    directory = _last_directory(sweep) if out is None else _given_directory(sweep, out)
    if directory is None:
        directory = _create(sweep, out)
    write_text(directory.sweep, sweep.dump())
    return directory


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8", newline="")
    os.replace(partial, path)


def _last_directory(sweep: Sweep) -> SweepDirectory | None:
    """Return the last `runs/<name>-<n>` of this sweep, or None."""
    numbers = [path.name.removeprefix(f"{sweep.name}-") for path in _RUNS.glob(f"{sweep.name}-*")]
    for number in sorted((int(number) for number in numbers if number.isdecimal()), reverse=True):
        directory = SweepDirectory(_RUNS / f"{sweep.name}-{number}")
        if directory.sweep.is_file() and _is_same(sweep, directory):
            return directory
    return None


def _is_same(sweep: Sweep, directory: SweepDirectory) -> bool:
    """Return True if a directory holds this sweep."""
    try:
        return not load_sweep(directory.sweep).differences(sweep)
    except ConfigError:
        # written by another version, or edited
        return False


def _given_directory(sweep: Sweep, out: Path) -> SweepDirectory | None:
    """Return `out` if it holds this sweep, or None if it is missing or empty; raise an error for other content."""
    directory = SweepDirectory(out)
    if directory.sweep.is_file():
        different = load_sweep(directory.sweep).differences(sweep)
        if different:
            keys = ", ".join(f"`{key}`" for key in different[:6])
            raise ConfigError(
                f"`{out}` holds a sweep of other settings: {keys} differ. Use the same values, or another --out."
            )
        return directory
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"`{out}` exists already and holds no sweep. Give another --out.")
    return None


def _create(sweep: Sweep, out: Path | None) -> SweepDirectory:
    """Create the directory with its sweep.yaml. Two processes that do so at once get the same directory."""
    parent = _RUNS if out is None else out.parent
    parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{sweep.name}-", dir=parent))
    made.chmod(0o755)
    write_text(made / "sweep.yaml", sweep.dump())
    try:
        while True:
            found = _last_directory(sweep) if out is None else _given_directory(sweep, out)
            if found is not None:
                return found
            target = _free_path(sweep.name) if out is None else out
            try:
                os.rename(made, target)
            except OSError:
                if not target.exists():
                    raise
                continue
            return SweepDirectory(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _free_path(name: str) -> Path:
    """Return the first `runs/<name>-<n>` that does not exist."""
    number = 1
    while (_RUNS / f"{name}-{number}").exists():
        number += 1
    return _RUNS / f"{name}-{number}"
