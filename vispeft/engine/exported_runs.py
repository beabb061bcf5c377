"""Exported models in the place of runs, for prediction."""

from __future__ import annotations

from pathlib import Path

from vispeft.config import parse_config
from vispeft.engine.run_directory import RunDirectory
from vispeft.engine.saved_runs import LoadedRun
from vispeft.models.exported.files import ENDINGS
from vispeft.models.exported.model import ExportedModel


def is_exported(path: Path) -> bool:
    """Return True for the name of a file that `vispeft export` writes."""
    return path.suffix in ENDINGS


def load_exported(path: Path) -> LoadedRun:
    """Return an exported model as a run that only predicts, on the CPU in float32."""
    model = ExportedModel(path)
    known = model.description
    config = parse_config(
        {
            "model": {"weights": "none", "image_size": known.image_size},
            "train": {"precision": "fp32"},
            "eval": {"max_detections": known.max_detections},
        }
    )
    return LoadedRun(RunDirectory(path.parent), config, model, known.class_names, known.category_ids)
