"""Weights of EoMT: whole models by our names or those of others, and class heads of another size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vispeft.models.eomt.names import class_head_of, own_names
from vispeft.models.weight_files import load_state, read_state

_CLASS_WEIGHT = "predictor.class_embed.weight"
_CLASS_BIAS = "predictor.class_embed.bias"


def load_eomt(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors, in place, by our names, the official ones or those of transformers.

    A class head of another size is fitted.

    Raises CheckpointError naming the tensors that are missing, unknown or of another shape; the model is unchanged
    then.

    source: name of the file, for errors
    """
    load_own(model, own_names(tensors, model.state_dict()), source=source)


def load_own(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors, in place, by our names. A class head of another size is fitted.

    Raises CheckpointError as `load_eomt` does.
    """
    num_classes = len(model.get_parameter(_CLASS_WEIGHT)) - 1
    load_state(model, fit_class_head(tensors, num_classes), source=source)


def num_classes_in(path: str | Path) -> int | None:
    """Return the number of classes that a weights file has a head for; None where it has none of EoMT's.

    Raises CheckpointError where the file is missing, not readable or holds no tensors.
    """
    rows = class_head_of(read_state(path))
    return None if rows is None else len(rows) - 1


def fit_class_head(state: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """Return the state with class rows for `num_classes` classes.

    Where the number differs, every new class starts with the mean weights of the old ones. Its bias keeps the odds of
    all classes together against "no object", the last row, for features of zero. Equal numbers are left alone.
    """
    fitted = dict(state)
    if _CLASS_WEIGHT not in state or _CLASS_BIAS not in state or len(state[_CLASS_WEIGHT]) == num_classes + 1:
        return fitted
    given = len(state[_CLASS_WEIGHT]) - 1
    for name in (_CLASS_WEIGHT, _CLASS_BIAS):
        rows = state[name].float()
        classes, no_object = rows[:given], rows[given:]
        if name == _CLASS_BIAS:
            start = classes.logsumexp(0, keepdim=True) - math.log(num_classes)
        else:
            start = classes.mean(0, keepdim=True)
        fitted[name] = torch.cat((start.expand(num_classes, *start.shape[1:]), no_object))
    return fitted
