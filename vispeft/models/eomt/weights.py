"""Weights of EoMT: whole models by our names or those of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vispeft.models.eomt.names import class_head_of, own_names
from vispeft.models.plain_mask.weights import load_own
from vispeft.models.weight_files import read_state


def load_eomt(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors, in place, by our names, the official ones or those of transformers.

    A class head of another size is fitted, and further queries start as copies of those of the file. Raises
    CheckpointError naming the tensors that are missing, unknown or of another shape; the model is unchanged then.

    source: name of the file, for errors
    """
    load_own(model, own_names(tensors, model.state_dict()), source=source)


def num_classes_in(path: str | Path) -> int | None:
    """Return the number of classes that a weights file has a head for; None where it has none of EoMT's.

    Raises CheckpointError where the file is missing, not readable or holds no tensors.
    """
    rows = class_head_of(read_state(path))
    return None if rows is None else len(rows) - 1
