"""Contract of the metrics of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

KIND_NAMES: Mapping[str, str] = {"segm": "mask", "bbox": "box", "semantic": "pixels", "panoptic": "segments"}
"""Names, for people, of the kinds of metrics in `summary.json`."""

LABEL_MAP_KINDS = ("semantic", "panoptic")
"""Kinds of metrics of label maps, which have no average precision."""


class Metrics(Protocol):
    """Metrics of results, in 0..1, -1 where undefined."""

    @property
    def kinds(self) -> Mapping[str, Mapping[str, float]]:
        """Return the metrics by kind, a key of `KIND_NAMES`, and name."""

    @property
    def per_category(self) -> Mapping[str, float]:
        """Return the main metric of each category by its name."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the anomalies of the annotations, one sentence each."""

    @property
    def category_metric(self) -> str:
        """Return the name of the main metric of a category, such as `mask AP`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of `summary.json`."""
