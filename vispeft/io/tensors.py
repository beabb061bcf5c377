"""Safetensors files: tensors by name, with text as metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vispeft.errors import CheckpointError, VispeftError
from vispeft.io.atomic import replacing


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    raises: type[VispeftError] = CheckpointError,
) -> None:
    """Write a safetensors file atomically. The tensors are contiguous and share no memory (see `own_copies`).

    raises: error for a file that cannot be written
    """
    with replacing(path, raises, SafetensorError) as partial:
        save_file(dict(tensors), partial, metadata=dict(metadata))


def own_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached, contiguous copies on the CPU that share no memory, as `write_tensors` needs them."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file."""
    try:
        with open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, without its tensors."""
    try:
        with open_tensors(path) as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors of a safetensors file, without their values."""
    try:
        with open_tensors(path) as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def open_tensors(path: Path) -> Any:
    """Open a safetensors file, whose tensors are read one by one. Errors are the library's own.

    The result is typed Any because the library has no types.
    """
    return safe_open(path, framework="pt")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"`{path}` cannot be read as a safetensors file: {error}. Is it complete?")
