"""Contract of a task: everything in which runs of different tasks differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vispeft.coco.sets import CocoSet
from vispeft.config import EvalConfig
from vispeft.evaluation import Metrics
from vispeft.models import DetectionLimits, SegmentationModel
from vispeft.structures import Instances
from vispeft.training.validate import InstanceFunction


class MapWriter(Protocol):
    """Writer of the label maps of predicted images."""

    def add(self, name: str, image: Mapping[str, Any], found: Instances) -> None:
        """Write the map of one image. name: file name of its overlay; image: its entry in images.json"""

    def finish(self) -> None:
        """Write the file of all images, if the format has one."""


class TaskRules(ABC):
    """Rules of a task.

    name: value of `task` in a configuration
    metric: its highest value is best, by its name in metrics.jsonl
    needs_masks: False where a model of boxes alone will do
    shows_scores: pictures show the scores, and leave out instances below a threshold
    found: name of the results
    """

    name: str
    metric: str
    needs_masks: bool = True
    shows_scores: bool = True
    found: str = "instances"

    @abstractmethod
    def read(self, annotations: Path, images: Path | None, segments: Path | None, *, num_channels: int) -> CocoSet:
        """Return the set of a split, one annotation for each mask or box to learn.

        images: None where the annotations alone matter; segments: folder of PNG files, if the configuration names one
        """

    @property
    def model_options(self) -> Mapping[str, Any]:
        """Return options of `build_model` that the task sets."""
        return {}

    @abstractmethod
    def finder(
        self,
        model: SegmentationModel,
        config: EvalConfig,
        limits: DetectionLimits,
        is_thing: Sequence[bool | None],
    ) -> InstanceFunction:
        """Return the function that makes instances, segments or boxes of a model's predictions.

        is_thing: of each class; see `vispeft.coco.sets.Category`
        """

    @abstractmethod
    def annotations(self, coco_set: CocoSet) -> dict[str, Any]:
        """Return the content of annotations_val.json."""

    @abstractmethod
    def evaluate(self, annotations: Any, results: Any, config: EvalConfig) -> Metrics:
        """Return the metrics of results. annotations, results: files, or their contents"""

    def writer(self, out: Path, categories: Sequence[Mapping[str, Any]]) -> MapWriter | None:
        """Return the writer of label maps into the folder of predictions; None for tasks without.

        categories: entries of images.json, in the order of the classes
        """
        return None
