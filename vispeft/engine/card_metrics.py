"""Metrics of a shared run for its model card, by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vispeft.evaluation.metrics.base import KIND_NAMES

_COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


@dataclass(frozen=True)
class MetricKind:
    """A kind of metrics as a card shows it.

    columns: metrics of the table, the main one first
    category: metric of each class
    identifier: of the main metric on the hub
    """

    columns: tuple[str, ...]
    category: str
    identifier: str


_KINDS: Mapping[str, MetricKind] = {
    "segm": MetricKind(_COCO_METRICS, "mask AP", "mean_average_precision"),
    "bbox": MetricKind(_COCO_METRICS, "box AP", "mean_average_precision"),
    "semantic": MetricKind(("mIoU", "pixel_accuracy", "mean_accuracy"), "IoU", "mean_iou"),
    "panoptic": MetricKind(("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"), "PQ", "panoptic_quality"),
}


def metric_kinds(summary: Mapping[str, Any]) -> dict[str, MetricKind]:
    """Return the kinds whose main metric a summary has and defines, the first being the task's own."""
    return {
        key: kind for key, kind in _KINDS.items() if key in summary and summary[key].get(kind.columns[0], -1.0) >= 0
    }


def index_metrics(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the main metric of each kind in the form of the hub's model index."""
    return [
        {
            "type": kind.identifier,
            "name": f"{KIND_NAMES[key]} {kind.columns[0]}",
            "value": round(float(summary[key][kind.columns[0]]), 4),
        }
        for key, kind in metric_kinds(summary).items()
    ]


def metrics_table(summary: Mapping[str, Any]) -> list[str]:
    """Return the lines of a Markdown table with a row for each kind; none where no metric is defined."""
    kinds = metric_kinds(summary)
    if not kinds:
        return []
    columns = next(iter(kinds.values())).columns
    rows = [
        f"| {KIND_NAMES[key]} | " + " | ".join(number_text(summary[key].get(name)) for name in columns) + " |"
        for key in kinds
    ]
    return ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|", *rows, ""]


def category_metric(summary: Mapping[str, Any]) -> str:
    """Return the name of the metric of each class."""
    return next((kind.category for kind in metric_kinds(summary).values()), "mask AP")


def number_text(value: Any) -> str:
    """Return a metric as text, a dash where it is undefined (-1)."""
    return "-" if value is None or float(value) < 0 else f"{float(value):.3f}"
