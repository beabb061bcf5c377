"""Checks of the methods in a configuration, before any work."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any, TypeVar

from vispeft.config.strict_yaml import describe
from vispeft.errors import ConfigError, VispeftError
from vispeft.io.names import did_you_mean
from vispeft.peft import Method, known_methods
from vispeft.training.optim import FULL

T = TypeVar("T")


def imported_modules(names: tuple[str, ...]) -> tuple[str, ...]:
    """Import the modules that register methods. Return their names unchanged; raise ConfigError if an import fails."""
    for name in names:
        try:
            import_module(name)
        except Exception as error:  # a module of the user may raise anything
            raise ConfigError(
                f"`peft.modules` names `{name}`, which cannot be imported: {type(error).__name__}: "
                f"{str(error).rstrip('.')}. Give its full dotted name, and install it or add its folder to PYTHONPATH."
            ) from error
    return names


def checked_deltas(deltas: dict[str, Any]) -> dict[str, Any]:
    """Return the deltas without those that are null; raise ConfigError for one that `methods_from` refuses."""
    given = {pattern: fields for pattern, fields in deltas.items() if fields is not None}
    for pattern, fields in given.items():
        methods_from(fields, f"peft.deltas.{pattern}")
    return given


def checked_rates(rates: dict[str, T]) -> dict[str, T]:
    """Return the rates unchanged; raise ConfigError for a name other than a method or `full`."""
    known = [*known_methods(), FULL]
    for name in rates:
        if name not in known:
            guess = did_you_mean(name, known, prefix="train.methods.", cutoff=0.0)
            raise ConfigError(f"`train.methods.{name}` is not a method.{guess}")
    return rates


def methods_from(value: Any, key: str) -> list[Method]:
    """Return the methods of one pattern: `{method: lora, rank: 8}`, or a list of these. key: dotted key, for errors"""
    if isinstance(value, list) and value:
        return [_method_from(fields, f"{key}.{index}") for index, fields in enumerate(value)]
    return [_method_from(value, key)]


def _method_from(fields: Any, key: str) -> Method:
    kinds = known_methods()
    if not isinstance(fields, dict) or "method" not in fields:
        # an unquoted pattern on the command line is split at its dots and fails here
        raise ConfigError(
            f"`{key}` must be like {{method: lora, rank: 8}}, with one of the methods {', '.join(kinds)}, "
            f"but is {describe(fields)}. On the command line, put the pattern in quotes."
        )
    name = fields["method"]
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        guess = did_you_mean(str(name), kinds, cutoff=0.0)
        raise ConfigError(
            f"`{key}.method` must be a method, but is {describe(name)}.{guess} "
            f"The module that registers a method of your own must be in `peft.modules`."
        )
    options = {option: value for option, value in fields.items() if option != "method"}
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            guess = did_you_mean(option, known, prefix=f"{key}.", cutoff=0.0)
            raise ConfigError(f"`{key}.{option}` is not an option of {name}.{guess}")
    try:
        return kind.from_options(options)
    except VispeftError as error:
        raise ConfigError(f"`{key}`: {error}") from error
