"""Self-contained HTML pages of a run, of a comparison of runs, and of a sweep."""

from vispeft.report.comparison_page import write_comparison
from vispeft.report.run_page import write_report
from vispeft.report.sweep_page import write_sweep_report

__all__ = ["write_comparison", "write_report", "write_sweep_report"]
