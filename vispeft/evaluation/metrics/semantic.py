"""Metrics of semantic segmentation: mean IoU over classes, and accuracy of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.evaluation.metrics.label_maps import read_segments


@dataclass(frozen=True)
class SemanticMetrics:
    """Metrics of the pixels of all images together, in 0..1, -1 where undefined.

    semantic: `mIoU`, mean over the classes that the annotations have; `pixel_accuracy`, part of the labelled pixels
        with the right class; `mean_accuracy`, mean of that part over classes
    per_category: category name to IoU
    """

    semantic: Mapping[str, float]
    per_category: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, Mapping[str, float]]:
        """Return the metrics by kind."""
        return {"semantic": self.semantic}

    @property
    def category_metric(self) -> str:
        """Return the name of the metric of a category."""
        return "IoU"

    def to_dict(self) -> dict[str, Any]:
        """Return `semantic`, `miou` and `per_category`, as in `summary.json`."""
        return {"semantic": dict(self.semantic), "miou": self.semantic["mIoU"], "per_category": dict(self.per_category)}


def evaluate_semantic(
    annotations: Path | str | dict[str, Any], results: Path | str | list[dict[str, Any]]
) -> SemanticMetrics:
    """Return the metrics of label maps: annotations and results are one mask for each class of an image.

    Pixels without an annotation do not count; without a result they count as missed.
    """
    read = read_segments(annotations, results)
    place = {identifier: idx + 1 for idx, identifier in enumerate(read.category_ids)}
    confusion = np.zeros((len(place) + 1, len(place) + 1), np.int64)
    for image in read.images():
        rows = np.array([0, *(place[entry["category_id"]] for entry in image.truths)])
        columns = np.array([0, *(place[entry["category_id"]] for entry in image.results)])
        np.add.at(confusion, (rows[:, None], columns), image.overlaps)
    return _metrics(confusion, read.names, read.warnings)


def _metrics(confusion: NDArray[np.int64], names: tuple[str, ...], warnings: tuple[str, ...]) -> SemanticMetrics:
    """Return the metrics of pixel counts by annotated class (row) and predicted class; 0 is unlabelled."""
    labelled = confusion[1:].astype(np.float64)
    hits = labelled[:, 1:].diagonal()
    annotated, predicted = labelled.sum(1), labelled[:, 1:].sum(0)
    union = annotated + predicted - hits
    is_present = annotated > 0
    ious = np.where(is_present, hits / np.maximum(union, 1), -1.0)
    if not is_present.any():
        undefined = dict.fromkeys(("mIoU", "pixel_accuracy", "mean_accuracy"), -1.0)
        return SemanticMetrics(undefined, dict(zip(names, ious.tolist(), strict=True)), warnings)
    values = {
        "mIoU": float(ious[is_present].mean()),
        "pixel_accuracy": float(hits.sum() / annotated.sum()),
        "mean_accuracy": float((hits[is_present] / annotated[is_present]).mean()),
    }
    return SemanticMetrics(values, dict(zip(names, ious.tolist(), strict=True)), warnings)
