"""Sizes of a family by name, with single fields changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from vispeft.errors import ConfigError
from vispeft.io.names import did_you_mean
from vispeft.models.base import ModelArguments

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Size = TypeVar("Size", bound="DataclassInstance")


def size_of(sizes: Mapping[str, Size], arguments: ModelArguments) -> Size:
    """Return the size that a model's arguments name, with their options as its fields.

    Raises ConfigError with the nearest names for an unknown size or option.
    """
    name = arguments.size
    if name not in sizes:
        raise ConfigError(f"`size` must be one of {', '.join(sizes)}, but is {name!r}.{did_you_mean(name, sizes)}")
    known = {field.name for field in fields(sizes[name])}
    for key in arguments.options:
        if key not in known:
            raise ConfigError(
                f"`options` has no {key!r}.{did_you_mean(key, known)} It takes {', '.join(sorted(known))}."
            )
    return replace(sizes[name], **arguments.options)
