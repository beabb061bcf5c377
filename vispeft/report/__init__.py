"""One self-contained HTML page for a run, and one for several runs side by side."""

from vispeft.report.pages import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
