"""Exported models in the place of runs, for prediction."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vispeft.config import parse_config
from vispeft.engine.export import DEFAULT_THRESHOLD
from vispeft.engine.run_directory import RunDirectory
from vispeft.engine.saved_runs import LoadedRun, load_run
from vispeft.errors import CheckpointError, ConfigError
from vispeft.models.exported.files import ONNX, TORCH
from vispeft.models.exported.model import ExportedModel

_DEVICES = ("auto", "cpu")


@dataclass(frozen=True)
class PredictionSource:
    """A run that predicts, its device, and the lowest score of its instances unless another is given."""

    run: LoadedRun
    device: str
    threshold: float


def load_source(root: str | os.PathLike[str], device: str) -> PredictionSource:
    """Return the run of a run directory, or of an exported model, which predicts on the CPU.

    device: "auto", "cpu", "cuda", ...
    """
    path = Path(root)
    if path.suffix == TORCH and not path.is_dir():
        raise CheckpointError(
            f"`{path}` must be a run directory or an {ONNX} file: torch reads {TORCH} files by unpickling, which can "
            f"run code. Use `torch.export.load` for a file that you trust, or export the run to {ONNX}."
        )
    if path.suffix != ONNX or path.is_dir():
        return PredictionSource(load_run(root), device, DEFAULT_THRESHOLD)
    if device not in _DEVICES:
        raise ConfigError(f"`--device` must be cpu for an exported model, but is {device}. For others, use the run.")
    run = load_exported(path)
    assert isinstance(run.model, ExportedModel)
    return PredictionSource(run, "cpu", run.model.description.score_threshold)


def load_exported(path: Path) -> LoadedRun:
    """Return an exported ONNX model as a run that only predicts, on the CPU in float32."""
    model = ExportedModel(path)
    known = model.description
    config = parse_config(
        {
            "model": {
                "weights": "none",
                "image_size": known.image_size,
                "tile": known.tile,
                "tile_overlap": known.tile_overlap,
            },
            "train": {"precision": "fp32"},
            "eval": {"max_detections": known.max_detections},
        }
    )
    is_thing = (None,) * len(known.class_names)
    return LoadedRun(RunDirectory(path.parent), config, model, known.class_names, known.category_ids, is_thing)
