"""Evaluation: metrics of each task, comparisons with confidence intervals, and error analysis."""

from vispeft.evaluation.metrics.base import Metrics
from vispeft.evaluation.metrics.coco import CocoMetrics, evaluate_boxes, evaluate_coco
from vispeft.evaluation.metrics.panoptic import PanopticMetrics, evaluate_panoptic
from vispeft.evaluation.metrics.semantic import SemanticMetrics, evaluate_semantic

__all__ = [
    "CocoMetrics",
    "Metrics",
    "PanopticMetrics",
    "SemanticMetrics",
    "evaluate_boxes",
    "evaluate_coco",
    "evaluate_panoptic",
    "evaluate_semantic",
]
