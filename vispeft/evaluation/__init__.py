"""From predictions to figures and pictures: postprocessing, COCO results, COCO metrics, overlays."""

from vispeft.evaluation.coco_eval import CocoMetrics, evaluate_coco
from vispeft.evaluation.pictures import draw_instances, side_by_side
from vispeft.evaluation.postprocess import postprocess
from vispeft.evaluation.results import read_results, to_coco_results, write_results

__all__ = [
    "CocoMetrics",
    "draw_instances",
    "evaluate_coco",
    "postprocess",
    "read_results",
    "side_by_side",
    "to_coco_results",
    "write_results",
]
