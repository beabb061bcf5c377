"""Sweeps: a configuration varied over a space, every point an ordinary run, in a study that workers share."""

from vispeft.sweep.directory import SweepDirectory, open_sweep_directory
from vispeft.sweep.preflight import check_plans
from vispeft.sweep.results import Configuration, Results, Row
from vispeft.sweep.sweep import Sweep, load_sweep
from vispeft.sweep.worker import SweepResult, is_child, run_sweep, work_as_child

__all__ = [
    "Configuration",
    "Results",
    "Row",
    "Sweep",
    "SweepDirectory",
    "SweepResult",
    "check_plans",
    "is_child",
    "load_sweep",
    "open_sweep_directory",
    "run_sweep",
    "work_as_child",
]
