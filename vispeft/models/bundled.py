"""The base that comes with the package: a tiny Mask DINO, pretrained on photographs and synthetic scenes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from vispeft.errors import CheckpointError
from vispeft.io.tensors import read_metadata, read_tensors
from vispeft.models.base import SegmentationModel
from vispeft.models.checkpoint_metadata import CheckpointMetadata, read_checkpoint_metadata, save_with_metadata
from vispeft.models.registry import build_model

BUNDLED = "bundled"
"""Name of the bundled base in the place of a weights file's path."""


def bundled_path() -> Path:
    """Return the path of the bundled weights."""
    return Path(str(resources.files("vispeft") / "assets" / "bundled.safetensors"))


def bundled_class_names() -> tuple[str, ...]:
    """Return the names of the base's own classes, in order; "object", for every kind of thing, comes first."""
    return tuple(json.loads(read_metadata(bundled_path())["class_names"]))


def load_bundled(
    num_classes: int = 1, *, path: Path | None = None, arguments: Mapping[str, Any] | None = None
) -> SegmentationModel:
    """Return the bundled base with a head for `num_classes`, in float32 on the CPU.

    Where the number of classes differs from the file's, every new class starts as the mean of its classes. Raises
    CheckpointError where the file is missing or was not written by `save_bundled`.

    arguments: of `build_model`, in the place of those that the file names
    """
    path = path or bundled_path()
    if not path.is_file():
        raise CheckpointError(f"The bundled base {path} is missing. Install vispeft again.")
    metadata = read_checkpoint_metadata(path)
    if metadata is None:
        raise CheckpointError(f"{path} names no model. Install vispeft again.")
    model = build_model(num_classes=num_classes, **(arguments or metadata.arguments))
    state = {name: tensor.float() for name, tensor in read_tensors(path)[0].items()}
    model.load_tensors(state, source=str(path))
    return model


def save_bundled(model: SegmentationModel, path: Path, arguments: dict[str, Any], *, notes: dict[str, str]) -> None:
    """Write the weights in float16, with the `build_model` arguments that rebuild the model and further metadata."""
    tensors = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    save_with_metadata(tensors, path, CheckpointMetadata(arguments), notes=notes)
