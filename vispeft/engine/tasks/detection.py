"""Object detection: boxes alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vispeft.coco.sets import CocoSet, to_annotations
from vispeft.config import EvalConfig
from vispeft.data.reading.boxes import read_boxes
from vispeft.engine.tasks.instance import InstanceTask
from vispeft.evaluation import Metrics, evaluate_boxes


class DetectionTask(InstanceTask):
    """Detection from the boxes of COCO files, by a model without the layers of masks, scored by box AP."""

    name = "detection"
    metric = "bbox/AP"
    needs_masks = False
    found = "boxes"

    def read(self, annotations: Path, images: Path | None, segments: Path | None, *, num_channels: int) -> CocoSet:
        """Return the boxes of a COCO file; masks are ignored. segments: not used"""
        return read_boxes(annotations, images, num_channels=num_channels)

    @property
    def model_options(self) -> Mapping[str, Any]:
        """Return the option of a model without masks."""
        return {"predicts_masks": False}

    def annotations(self, coco_set: CocoSet) -> dict[str, Any]:
        """Return the entries in use, without the rectangles that stand for masks."""
        document = to_annotations(coco_set)
        for entry in document["annotations"]:
            del entry["segmentation"]
        return document

    def evaluate(self, annotations: Any, results: Any, config: EvalConfig) -> Metrics:
        """Return the COCO metrics of boxes."""
        return evaluate_boxes(annotations, results, max_detections=config.max_detections)
