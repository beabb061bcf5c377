"""Instance segmentation: masks of single objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vispeft.coco.sets import CocoSet, to_annotations
from vispeft.config import EvalConfig
from vispeft.data import read_coco
from vispeft.engine.tasks.base import TaskRules
from vispeft.evaluation import Metrics, evaluate_coco
from vispeft.models import DetectionLimits, SegmentationModel
from vispeft.structures import ImageMeta, Instances, Predictions
from vispeft.training.validate import InstanceFunction


class InstanceTask(TaskRules):
    """Instance segmentation of COCO instance files, scored by mask AP."""

    name = "instance"
    metric = "segm/AP"

    def read(self, annotations: Path, images: Path | None, segments: Path | None, *, num_channels: int) -> CocoSet:
        """Return the instances of a COCO file. segments: not used"""
        return read_coco(annotations, images, num_channels=num_channels)

    def finder(
        self,
        model: SegmentationModel,
        config: EvalConfig,
        limits: DetectionLimits,
        is_thing: Sequence[bool | None],
    ) -> InstanceFunction:
        """Return the model's own inference."""
        return partial(model_instances, model, limits)

    def annotations(self, coco_set: CocoSet) -> dict[str, Any]:
        """Return the entries in use."""
        return to_annotations(coco_set)

    def evaluate(self, annotations: Any, results: Any, config: EvalConfig) -> Metrics:
        """Return the COCO metrics of masks and boxes."""
        return evaluate_coco(annotations, results, max_detections=config.max_detections)


def model_instances(
    model: SegmentationModel,
    limits: DetectionLimits,
    predictions: Predictions,
    metas: Sequence[ImageMeta],
    padded_size: tuple[int, int],
) -> list[Instances]:
    """Return the instances of a model's own inference."""
    return model.instances(predictions, metas, padded_size=padded_size, limits=limits)
