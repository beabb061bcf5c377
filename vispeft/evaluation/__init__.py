"""From predictions to figures and pictures: postprocessing, COCO results, COCO metrics, overlays."""

from vispeft.evaluation.coco_eval import CocoMetrics, evaluate_coco
from vispeft.evaluation.postprocess import postprocess
from vispeft.evaluation.results import read_results, to_coco_results, write_results

__all__ = [
    "CocoMetrics",
    "evaluate_coco",
    "postprocess",
    "read_results",
    "to_coco_results",
    "write_results",
]
