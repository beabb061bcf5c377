"""Evaluation: COCO metrics, comparisons with confidence intervals, and error analysis."""

from vispeft.evaluation.metrics.coco import CocoMetrics, evaluate_coco

__all__ = ["CocoMetrics", "evaluate_coco"]
