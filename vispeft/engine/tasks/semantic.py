"""Semantic segmentation: the class of every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vispeft.coco.sets import CocoSet
from vispeft.config import EvalConfig
from vispeft.data.reading.semantic import read_semantic
from vispeft.engine.tasks.label_maps import LabelMapTask, label_map_model, values_of, write_map
from vispeft.errors import DataError
from vispeft.evaluation import Metrics, evaluate_semantic
from vispeft.models import DetectionLimits, SegmentationModel
from vispeft.models.label_maps import semantic_maps
from vispeft.structures import ImageMeta, Instances, Predictions
from vispeft.training.validate import InstanceFunction

_FOLDER = "semantic"
_LARGEST_ID = 2**16 - 1


class SemanticTask(LabelMapTask):
    """Semantic segmentation of instance files, panoptic files or label maps, scored by mean IoU."""

    name = "semantic"
    metric = "semantic/mIoU"

    def read(self, annotations: Path, images: Path | None, segments: Path | None, *, num_channels: int) -> CocoSet:
        """Return one mask for each class of an image."""
        return read_semantic(annotations, images, segments, num_channels=num_channels)

    def finder(
        self,
        model: SegmentationModel,
        config: EvalConfig,
        limits: DetectionLimits,
        is_thing: Sequence[bool | None],
    ) -> InstanceFunction:
        """Return the semantic inference of MaskFormer."""
        predictor = label_map_model(model, self.name)

        def find(predictions: Predictions, metas: Sequence[ImageMeta], padded_size: tuple[int, int]) -> list[Instances]:
            return semantic_maps(predictions, predictor.query_scores(predictions), metas, padded_size=padded_size)

        return find

    def evaluate(self, annotations: Any, results: Any, config: EvalConfig) -> Metrics:
        """Return mean IoU and accuracy of pixels."""
        return evaluate_semantic(annotations, results)

    def writer(self, out: Path, categories: Sequence[Mapping[str, Any]]) -> _Writer:
        """Return the writer of `semantic/<name>.png`, whose values are category ids."""
        ids = tuple(category["id"] for category in categories)
        if max(ids) > _LARGEST_ID:
            raise DataError(
                f"A label map has no room for the category id {max(ids)}: ids must be at most {_LARGEST_ID}. Give the "
                "categories smaller ids in the annotations, and train again."
            )
        return _Writer(out / _FOLDER, ids)


@dataclass(frozen=True)
class _Writer:
    """Writer of label maps. category_ids: by class index"""

    folder: Path
    category_ids: tuple[int, ...]

    def add(self, name: str, image: Mapping[str, Any], found: Instances) -> None:
        """Write the map of one image, 16 bits deep where the ids need them."""
        values = values_of(image, found, [self.category_ids[label] for label in found.labels.tolist()])
        depth = np.uint8 if max(self.category_ids) < 256 else np.uint16
        write_map(self.folder / name, Image.fromarray(values.astype(depth)))

    def finish(self) -> None:
        """Write nothing more."""
