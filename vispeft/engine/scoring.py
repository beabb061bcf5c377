"""COCO results and metrics of a model on a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from vispeft.coco.sets import CocoSet
from vispeft.config import Config
from vispeft.evaluation import CocoMetrics
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
    num_own = len(range(fabric.global_rank, len(coco_set), fabric.world_size))
    return predict_dataset(
        fabric,
        called,
        batches,
        lambda predictions, metas, padded_size: model.instances(
            predictions, metas, padded_size=padded_size, limits=limits
        ),
        coco_set.category_ids,
        num_images=num_own,
        max_detections=config.eval.max_detections,
    )


def flat_metrics(metrics: CocoMetrics) -> dict[str, float]:
    """Return the metrics of masks and boxes by their names in metrics.jsonl: `segm/AP`, `bbox/AP50`, ..."""
    pairs = (("segm", metrics.segm), ("bbox", metrics.bbox))
    return {f"{kind}/{name}": value for kind, values in pairs for name, value in values.items()}
