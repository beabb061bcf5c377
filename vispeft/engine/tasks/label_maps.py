"""Common parts of semantic and panoptic segmentation: models and files of label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vispeft.coco.label_maps import VOID, mask_of
from vispeft.coco.sets import CocoSet, to_annotations
from vispeft.engine.tasks.base import TaskRules
from vispeft.errors import ConfigError, DataError, writing
from vispeft.io.pictures import write_picture
from vispeft.models import SegmentationModel
from vispeft.models.base import PredictsLabelMaps
from vispeft.structures import Instances


class LabelMapTask(TaskRules):
    """A task whose results are masks that do not overlap."""

    shows_scores = False
    found = "segments"

    def annotations(self, coco_set: CocoSet) -> dict[str, Any]:
        """Return the masks in use, in the form of an instance file; panoptic ones with `isthing`."""
        return to_annotations(coco_set)


def label_map_model(model: SegmentationModel, task: str) -> PredictsLabelMaps:
    """Return a model as one that predicts label maps. Raises ConfigError for others."""
    if not isinstance(model, PredictsLabelMaps):
        raise ConfigError(f"`task` must be instance with this model, which predicts no label maps, but is {task}.")
    return model


def values_of(image: Mapping[str, Any], found: Instances, values: Sequence[int]) -> NDArray[np.int64]:
    """Return a label map, [height, width]. values: of each instance; `VOID` is everywhere else"""
    label_map = np.full((image["height"], image["width"]), VOID, np.int64)
    for rle, value in zip(found.rles, values, strict=True):
        label_map[mask_of(rle)] = value
    return label_map


def write_map(path: Path, picture: Image.Image) -> None:
    """Write the picture of a label map, and its folder."""
    with writing(path, DataError):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, picture)
