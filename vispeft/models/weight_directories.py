"""Directories of transformers with the weights of a model: a configuration, and tensors in one file or in several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.io.json_files import read_object

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_NAMES = (WEIGHTS, "pytorch_model.bin")


def is_weights_directory(path: Path) -> bool:
    """Tell whether a path is a directory with a configuration of transformers."""
    return (path / CONFIG).is_file()


def read_directory_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a directory. Raises VispeftError where it is damaged."""
    return read_object(path / CONFIG)


def read_directory(path: Path, read_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a directory.

    read_file: returns the tensors of one of its files

    Raises CheckpointError where it holds no weights.
    """
    for name in _NAMES:
        if (path / name).is_file():
            return read_file(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            return {key: value for part in _parts(index) for key, value in read_file(part).items()}
    raise CheckpointError(f"The directory {path} holds no weights: it has neither {' nor '.join(_NAMES)}.")


def _parts(index: Path) -> list[Path]:
    """Return the files that an index names. A name is that of a file beside the index."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"The index {index} names no files of weights. Is it complete?")
    return sorted({index.parent / Path(str(name)).name for name in weight_map.values()})
