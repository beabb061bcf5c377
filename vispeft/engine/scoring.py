"""Results and metrics of a model on a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from vispeft.coco.sets import CocoSet
from vispeft.config import Config
from vispeft.engine.tasks.registry import TASKS
from vispeft.evaluation import Metrics
from vispeft.models import DetectionLimits, SegmentationModel
from vispeft.structures import AnyBatch
from vispeft.training.validate import predict_dataset


def predict_split(
    config: Config,
    fabric: Fabric,
    coco_set: CocoSet,
    model: SegmentationModel,
    called: nn.Module,
    batches: Iterable[AnyBatch],
) -> list[dict[str, Any]]:
    """Return COCO results of every image of a set, the same in every process.

    called: the model, or its tail, which takes the batches
    """
    limits = DetectionLimits(config.eval.max_detections)
    is_thing = [category.is_thing for category in coco_set.categories]
    num_own = len(range(fabric.global_rank, len(coco_set), fabric.world_size))
    return predict_dataset(
        fabric,
        called,
        batches,
        TASKS[config.task].finder(model, config.eval, limits, is_thing),
        coco_set.category_ids,
        num_images=num_own,
        max_detections=config.eval.max_detections,
    )


def flat_metrics(metrics: Metrics) -> dict[str, float]:
    """Return the metrics by their names in metrics.jsonl: `segm/AP`, `bbox/AP50`, `panoptic/PQ`, ..."""
    return {f"{kind}/{name}": value for kind, values in metrics.kinds.items() for name, value in values.items()}
