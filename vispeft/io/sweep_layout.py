"""Layout of a sweep's directory: the names of its files, and the directories of its trials."""

from __future__ import annotations

from pathlib import Path

SWEEP_FILE = "sweep.yaml"
STUDY_FILE = "study.db"
RESULTS_JSON = "results.json"
RESULTS_CSV = "results.csv"
BEST_FILE = "best.yaml"
COMPARISON_FILE = "comparison.json"


def trial_name(number: int) -> str:
    """Return the name under which a trial's directory, log and lock stand, such as 0001. number: counted from 1"""
    return f"{number:04d}"


def trial_directory(sweep_dir: Path, number: int) -> Path:
    """Return the run directory of a trial. number: counted from 1"""
    return sweep_dir / "trials" / trial_name(number)
