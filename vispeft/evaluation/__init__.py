"""Evaluation: postprocessing, COCO results, COCO metrics, comparisons, error analysis and overlays.

Names are loaded when they are first used, so that scoring and comparing files does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vispeft.evaluation.coco_eval import CocoMetrics, evaluate_coco
    from vispeft.evaluation.pictures import draw_instances, side_by_side
    from vispeft.evaluation.postprocessing import postprocess
    from vispeft.evaluation.results import read_results, to_coco_results, write_results

_HOMES = {
    "CocoMetrics": "coco_eval",
    "draw_instances": "pictures",
    "evaluate_coco": "coco_eval",
    "postprocess": "postprocessing",
    "read_results": "results",
    "side_by_side": "pictures",
    "to_coco_results": "results",
    "write_results": "results",
}

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


def __getattr__(name: str) -> Any:
    """Return a public name, loaded on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vispeft.evaluation' has no attribute {name!r}")
    return getattr(import_module(f"vispeft.evaluation.{_HOMES[name]}"), name)
