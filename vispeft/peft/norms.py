"""Norms of a model, found by their type, since their names differ from model to model (`norm1`, `bn2`, `ln`)."""

from __future__ import annotations

from torch import nn


def is_norm(module: nn.Module) -> bool:
    """Return True for a norm of any library that has parameters of its own.

    A class counts by `Norm` in its name, or by running statistics.
    """
    has_parameters = any(True for _ in module.parameters(recurse=False))
    has_statistics = any(name == "running_mean" for name, _ in module.named_buffers(recurse=False))
    return has_parameters and (has_statistics or "norm" in type(module).__name__.lower())
