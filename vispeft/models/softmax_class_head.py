"""Class heads with a last row for "no object", fitted to another number of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def num_classes_of(state: Mapping[str, Tensor], head: str) -> int | None:
    """Return the number of classes of a head, without "no object"; None where the tensors hold none of this name."""
    weight = f"{head}.weight"
    return len(state[weight]) - 1 if weight in state else None


def fit_class_head(state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Return the state with class rows for the model's number of classes.

    Where the number differs, every new class starts with the mean weights of the old ones. Its bias keeps the odds of
    all classes together against "no object", the last row, for features of zero. Equal numbers are left alone.

    own: the model's own tensors
    head: name of the linear map
    """
    fitted = dict(state)
    given, num_classes = num_classes_of(state, head), num_classes_of(own, head)
    if given is None or num_classes is None or given == num_classes or f"{head}.bias" not in state:
        return fitted
    for name in (f"{head}.weight", f"{head}.bias"):
        rows = state[name].float()
        classes, no_object = rows[:given], rows[given:]
        if name.endswith("bias"):
            start = classes.logsumexp(0, keepdim=True) - math.log(num_classes)
        else:
            start = classes.mean(0, keepdim=True)
        fitted[name] = torch.cat((start.expand(num_classes, *start.shape[1:]), no_object))
    return fitted
