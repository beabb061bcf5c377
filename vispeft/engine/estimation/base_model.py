"""Base model of a configuration with random weights, and the size of its data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vispeft.config import Config
from vispeft.data import read_coco
from vispeft.engine.build import build_base, complete, kept_class_names
from vispeft.engine.kept_classes import with_kept_classes
from vispeft.models import SegmentationModel

# of COCO, for a configuration without data
DEFAULT_NUM_CLASSES = 80
DEFAULT_NUM_OBJECTS = 4
# standard deviations above the mean: few batches of a run have more objects
_CROWDED = 2.5


@dataclass(frozen=True)
class Base:
    """Completed configuration, its model without deltas, and the objects of each image of a crowded batch."""

    config: Config
    model: SegmentationModel
    num_classes: int
    num_objects: int


def base_without_weights(config: Config) -> Base:
    """Return the base model of a configuration with random weights, bundled ones excepted."""
    num_classes, num_images, num_objects = _data_size(config)
    config = complete(config, num_images)
    return Base(config, build_base(config, num_classes, with_weights=False), num_classes, num_objects)


def _data_size(config: Config) -> tuple[int, int, int]:
    """Return the classes and images of the training set, and the objects of an image; defaults without data."""
    path = config.data.train.annotations
    if path is None:
        return DEFAULT_NUM_CLASSES, 1, DEFAULT_NUM_OBJECTS
    coco_set = with_kept_classes(read_coco(path, None), kept_class_names(config.model))
    counts = [len(group) for group in coco_set.annotations]
    return len(coco_set.categories), len(coco_set), _crowded(counts, config.train.batch_size)


def _crowded(counts: Sequence[int], batch_size: int) -> int:
    """Return the objects of an image in a batch with more objects than nearly all others."""
    spread = statistics.pstdev(counts) / math.sqrt(batch_size)
    return max(1, min(max(counts), math.ceil(statistics.fmean(counts) + _CROWDED * spread)))
