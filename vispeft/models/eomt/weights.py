"""Weights of EoMT: whole models by our own names, and class heads of another size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vispeft.models.class_head import ClassHead, fit_class_head
from vispeft.models.query_rows import fit_query_rows
from vispeft.models.weight_files import load_state, read_state

_CLASS_WEIGHT = "predictor.class_embed.weight"
CLASS_HEAD = ClassHead(linears=("predictor.class_embed",), has_no_object=True)


def load_eomt(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors by its own names, in place. A class head of another size is fitted, and
    further queries start as copies of those of the file.

    Raises CheckpointError naming the tensors that are missing, unknown or of another shape; the model is unchanged
    then.

    source: name of the file, for errors
    """
    num_classes = len(model.get_parameter(_CLASS_WEIGHT)) - 1
    fitted = fit_query_rows(
        fit_class_head(tensors, CLASS_HEAD, num_classes), ("queries",), len(model.get_parameter("queries"))
    )
    load_state(model, fitted, source=source)


def num_classes_in(path: str | Path) -> int | None:
    """Return the number of classes that a weights file has a head for; None where it has none of EoMT's.

    Raises CheckpointError where the file is missing, not readable or holds no tensors.
    """
    state = read_state(path)
    return len(state[_CLASS_WEIGHT]) - 1 if _CLASS_WEIGHT in state else None
