"""Panoptic segmentation: the class of every pixel, and the object for classes with instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vispeft.coco.label_maps import colour_of_id
from vispeft.coco.sets import CocoSet
from vispeft.config import EvalConfig
from vispeft.data.reading.panoptic import read_panoptic
from vispeft.engine.tasks.label_maps import LabelMapTask, label_map_model, values_of, write_map
from vispeft.errors import DataError
from vispeft.evaluation import Metrics, evaluate_panoptic
from vispeft.io.json_files import write_json
from vispeft.models import DetectionLimits, SegmentationModel
from vispeft.models.label_maps import PanopticLimits, panoptic_maps
from vispeft.structures import ImageMeta, Instances, Predictions
from vispeft.training.validate import InstanceFunction

_FOLDER, _FILE = "panoptic", "panoptic.json"


class PanopticTask(LabelMapTask):
    """Panoptic segmentation of panoptic COCO files, scored by panoptic quality."""

    name = "panoptic"
    metric = "panoptic/PQ"

    def read(self, annotations: Path, images: Path | None, segments: Path | None, *, num_channels: int) -> CocoSet:
        """Return one mask for each segment: instances of things, and one for each stuff class of an image."""
        return read_panoptic(annotations, images, segments, num_channels=num_channels)

    def finder(
        self,
        model: SegmentationModel,
        config: EvalConfig,
        limits: DetectionLimits,
        is_thing: Sequence[bool | None],
    ) -> InstanceFunction:
        """Return the panoptic inference of MaskFormer."""
        predictor = label_map_model(model, self.name)
        threshold = config.object_mask_threshold
        published = predictor.object_mask_threshold
        map_limits = PanopticLimits(published if threshold is None else threshold, config.overlap_threshold)
        stuff = frozenset(label for label, flag in enumerate(is_thing) if flag is False)

        def find(predictions: Predictions, metas: Sequence[ImageMeta], padded_size: tuple[int, int]) -> list[Instances]:
            scores = predictor.query_scores(predictions)
            return panoptic_maps(predictions, scores, metas, padded_size=padded_size, stuff=stuff, limits=map_limits)

        return find

    def evaluate(self, annotations: Any, results: Any, config: EvalConfig) -> Metrics:
        """Return panoptic quality."""
        return evaluate_panoptic(annotations, results)

    def writer(self, out: Path, categories: Sequence[Mapping[str, Any]]) -> _Writer:
        """Return the writer of a panoptic COCO file, `panoptic.json` and `panoptic/<name>.png`."""
        return _Writer(out, tuple(categories))


@dataclass(frozen=True)
class _Writer:
    """Writer of panoptic files. categories: by class index"""

    out: Path
    categories: tuple[Mapping[str, Any], ...]
    images: list[Mapping[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, image: Mapping[str, Any], found: Instances) -> None:
        """Write the PNG file of one image."""
        ids = range(1, len(found) + 1)
        values = values_of(image, found, ids)
        areas = np.bincount(values.reshape(-1), minlength=len(found) + 1).tolist()
        write_map(self.out / _FOLDER / name, Image.fromarray(colour_of_id(values)))
        segments = [
            {
                "id": identifier,
                "category_id": self.categories[label]["id"],
                "area": areas[identifier],
                "bbox": [round(number) for number in (left, top, right - left, bottom - top)],
                "iscrowd": 0,
            }
            for identifier, label, (left, top, right, bottom) in zip(
                ids, found.labels.tolist(), found.boxes_xyxy.tolist(), strict=True
            )
        ]
        self.images.append(image)
        self.annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})

    def finish(self) -> None:
        """Write the JSON file."""
        document = {"images": self.images, "annotations": self.annotations, "categories": list(self.categories)}
        write_json(self.out / _FILE, document, raises=DataError)
