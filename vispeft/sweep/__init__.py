"""Sweeps: runs of a configuration over a search space, in a study that several workers share."""

from vispeft.sweep.checks import check_plans
from vispeft.sweep.directory import SweepDirectory, open_sweep_directory
from vispeft.sweep.processes import is_child, work_as_child
from vispeft.sweep.results import Configuration, Results, Row
from vispeft.sweep.run import SweepResult, run_sweep
from vispeft.sweep.sweep import Sweep, load_sweep

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
