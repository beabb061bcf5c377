"""Contents of a run directory, read for a report. Only `config.yaml` is required."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.coco.ground_truth import GroundTruth, read_ground_truth
from vispeft.coco.results import read_results
from vispeft.errors import DataError
from vispeft.evaluation.metrics.base import LABEL_MAP_KINDS
from vispeft.io.json_files import read_object
from vispeft.io.metrics_file import read_metrics
from vispeft.io.run_layout import (
    ANNOTATIONS_FILE,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SUMMARY_FILE,
)
from vispeft.io.yaml_files import read_mapping

_DATA_KEYS = ("train.annotations", "train.images", "val.annotations", "val.images")


@dataclass(frozen=True)
class RunContents:
    """The contents of one run directory; fields of missing files are empty.

    images_path: folder of the validation images; None if the configuration has none
    data: `key=value` overrides for the data paths of the configuration, if all are given
    metrics: lines of metrics.jsonl
    ground_truth: validation annotations that were scored
    predictions: COCO results
    """

    path: Path
    config_text: str
    images_path: Path | None
    data: Sequence[str]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    ground_truth: GroundTruth | None
    predictions: Sequence[Mapping[str, Any]]

    @property
    def has_label_maps(self) -> bool:
        """Return True for a finished run of semantic or panoptic segmentation, which has no average precision."""
        return any(kind in self.summary for kind in LABEL_MAP_KINDS)

    def series(self, split: str, key: str) -> list[tuple[float, float]]:
        """Return step and value of one metric of metrics.jsonl, without the steps at which it was not finite."""
        lines = [line for line in self.metrics if line.get("split") == split]
        return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), (int, float))]


def read_run(run_dir: Path) -> RunContents:
    """Read a run directory."""
    config_path = run_dir / CONFIG_FILE
    if not config_path.is_file():
        raise DataError(
            f"`{run_dir}` must be a run directory, but has no {CONFIG_FILE}. Name a directory of `vispeft train`."
        )
    data = _data_section(read_mapping(config_path))
    config_text = config_path.read_text(encoding="utf-8")
    annotations_path, predictions_path = run_dir / ANNOTATIONS_FILE, run_dir / PREDICTIONS_FILE
    return RunContents(
        path=run_dir,
        config_text=config_text,
        images_path=Path(data["val.images"]) if "val.images" in data else None,
        data=[f"data.{key}={value}" for key, value in data.items()] if len(data) == len(_DATA_KEYS) else [],
        summary=read_object(run_dir / SUMMARY_FILE),
        environment=read_object(run_dir / ENVIRONMENT_FILE),
        metrics=read_metrics(run_dir / METRICS_FILE),
        ground_truth=read_ground_truth(annotations_path) if annotations_path.exists() else None,
        predictions=read_results(predictions_path) if predictions_path.exists() else [],
    )


def _data_section(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the data paths of a configuration by key, such as `val.images`."""
    found = {}
    for key in _DATA_KEYS:
        node: Any = config
        for part in ("data", *key.split(".")):
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, str):
            found[key] = node
    return found
