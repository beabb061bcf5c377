"""Weights of EoMT: whole models by our own names, and class heads of another size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vispeft.models.class_head import ClassHead, fit_class_head, num_classes_of
from vispeft.models.query_rows import fit_query_rows
from vispeft.models.weight_files import load_state, read_state

CLASS_HEAD = ClassHead(linears=("predictor.class_embed",), has_no_object=True)


def load_eomt(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors by its own names, in place. A class head of another size is fitted, and
    further queries start as copies of those of the file.

    Raises CheckpointError naming the tensors that are missing, unknown or of another shape; the model is unchanged
    then.

    source: name of the file, for errors
    """
    fitted = fit_class_head(tensors, CLASS_HEAD, num_classes_of(model.state_dict(), CLASS_HEAD))
    load_state(model, fit_query_rows(fitted, ("queries",), len(model.get_parameter("queries"))), source=source)


def num_classes_in(path: str | Path) -> int | None:
    """Return the number of classes that a weights file has a head for; None where it has none of EoMT's.

    Raises CheckpointError where the file is missing, not readable or holds no tensors.
    """
    return num_classes_of(read_state(path), CLASS_HEAD)
