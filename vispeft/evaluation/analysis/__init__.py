"""Error analysis of COCO results."""

from vispeft.evaluation.analysis.error_analysis import ErrorAnalysis, analyse_results

__all__ = ["ErrorAnalysis", "analyse_results"]
