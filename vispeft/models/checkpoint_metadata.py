"""Checkpoint metadata: safetensors files with the arguments of `build_model` in their header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.io.tensors import own_copies, read_metadata, write_tensors

_KEY = "vispeft_model"
_IMAGE_SIZE = "image_size"


@dataclass(frozen=True)
class CheckpointMetadata:
    """Metadata of a checkpoint.

    arguments: arguments of `build_model` but for the number of classes
    image_size: longer side of the network input that it was trained at, in pixels
    """

    arguments: Mapping[str, Any]
    image_size: int | None = None


def read_checkpoint_metadata(path: Path) -> CheckpointMetadata | None:
    """Return the metadata of a weights file; None where it has none, as files of other programs."""
    try:
        header = read_metadata(path)
    except CheckpointError:
        # reading its tensors will say what is wrong with it
        return None
    if _KEY not in header:
        return None
    try:
        arguments = json.loads(header[_KEY])
        size = int(header[_IMAGE_SIZE]) if _IMAGE_SIZE in header else None
    except ValueError as error:
        raise CheckpointError(f"The weights file {path} has a damaged header ({error}). Write it again.") from error
    if not isinstance(arguments, dict):
        raise CheckpointError(f"The weights file {path} has a damaged header: it names no model. Write it again.")
    return CheckpointMetadata(arguments, size)


def save_with_metadata(
    tensors: Mapping[str, Tensor], path: Path, metadata: CheckpointMetadata, *, notes: Mapping[str, str]
) -> None:
    """Write tensors with their metadata and `notes`, further texts of the header, atomically."""
    header = {_KEY: json.dumps(dict(metadata.arguments)), **notes}
    if metadata.image_size is not None:
        header[_IMAGE_SIZE] = str(metadata.image_size)
    write_tensors(path, own_copies(tensors), header)
