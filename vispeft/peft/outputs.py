"""Tensors inside the inputs and outputs of modules: tuples, mappings, dataclasses, and those within each other."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

Path = tuple[Any, ...]  # keys of mappings, positions of tuples and lists, names of fields


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield every tensor of a value, in its order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for _, entry in _entries(value):
            yield from tensors_of(entry)


def first_features(value: Any, path: Path = ()) -> tuple[Path, Tensor] | None:
    """Return the first tensor of a value that holds real numbers, with its place; None where there is none.

    Others, such as sizes, positions or masks, are no features that a delta could change.
    """
    if isinstance(value, Tensor):
        return (path, value) if value.is_floating_point() else None
    found = (first_features(entry, (*path, key)) for key, entry in _entries(value))
    return next((each for each in found if each is not None), None)


def replaced(value: Any, path: Path, tensor: Tensor) -> Any:
    """Return a value of the same type with another tensor in a place; all else is the same object."""
    if not path:
        return tensor
    key, *inner = path
    entry = replaced(dict(_entries(value))[key], tuple(inner), tensor)
    if isinstance(value, tuple | list):
        entries = [*value[:key], entry, *value[key + 1 :]]
        # a named tuple takes its fields one by one
        return type(value)(entries) if type(value) in (tuple, list) else type(value)(*entries)
    result = copy.copy(value)
    if isinstance(value, Mapping):
        result[key] = entry
    else:
        # a dataclass may be frozen
        object.__setattr__(result, key, entry)
    return result


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the entries of a value with their places; none of a value that may hold anything."""
    if isinstance(value, tuple | list):
        yield from enumerate(value)
    elif isinstance(value, Mapping):
        yield from value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name)
