"""Checkpoint files: the state of a run, written atomically and read back. The frozen base is not included."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vispeft.errors import CheckpointError
from vispeft.io.atomic import remove_partials, replacing
from vispeft.training.state import Checkpoint, Counters

_FORMAT = 1


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically."""
    content = {item.name: getattr(checkpoint, item.name) for item in dataclasses.fields(checkpoint)}
    content["counters"] = dataclasses.asdict(checkpoint.counters)
    # a killed run may have left one as large as the checkpoint
    remove_partials(path.parent)
    with replacing(path, CheckpointError) as partial, partial.open("wb") as file:
        _save({"format": _FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())


class _Written:
    """A file that keeps the error of a failed write, because torch replaces it by a message of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write, and keep the error of a failure."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """Flush, and keep the error of a failure."""
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise


def _save(content: Mapping[str, Any], file: BinaryIO) -> None:
    written = _Written(file)
    try:
        torch.save(content, written)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise written.error or OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU."""
    if not path.is_file():
        raise CheckpointError(
            f"`{path}` must be a checkpoint to resume from, but is not there. Train from the first step."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("format")
        if version != _FORMAT:
            raise CheckpointError(f"`{path}` must have checkpoint format {_FORMAT}, but has {version!r}.")
        return Checkpoint(**{**content, "counters": Counters(**content["counters"])})
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        pickle.PickleError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"`{path}` must be a checkpoint of `vispeft train`, but cannot be read: {reason.split('. ')[0]}. "
            "Delete it to train from the first step."
        ) from error
