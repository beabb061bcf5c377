"""What a configuration calls a method, and the check of its fields."""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vispeft.config.messages import sentences
from vispeft.errors import ConfigError, VispeftError
from vispeft.peft import Adapter, LoRA, Method
from vispeft.training.optim import FULL

T = TypeVar("T")

METHODS: dict[str, type[Method]] = {"lora": LoRA, "adapter": Adapter}


def checked_deltas(deltas: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same deltas, each of which `method_from` accepts."""
    for pattern, fields in deltas.items():
        method_from(fields, f"peft.deltas.{pattern}")
    return deltas


def checked_rates(rates: dict[str, T]) -> dict[str, T]:
    """The same rates, each of a method that there is, or of `full`."""
    known = [*METHODS, FULL]
    for name in rates:
        if name not in known:
            guess = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"`train.methods.{name}` is not a method. The nearest is `train.methods.{guess}`.")
    return rates


def method_from(fields: dict[str, Any], key: str) -> Method:
    """The method that `{method: lora, rank: 8, ...}` describes. key: where it stands, for errors."""
    if "method" not in fields:
        raise ConfigError(
            f"`{key}.method` must be set to one of {_listed(METHODS)}. (On the command line, put a pattern in quotes.)"
        )
    kind = METHODS.get(fields["method"]) if isinstance(fields["method"], str) else None
    if kind is None:
        raise ConfigError(f"`{key}.method` must be one of {_listed(METHODS)}, but is {fields['method']!r}.")
    arguments = {name: value for name, value in fields.items() if name != "method"}
    known = [field.name for field in dataclasses.fields(kind)]
    for name in arguments:
        if name not in known:
            guess = (difflib.get_close_matches(name, known, n=1, cutoff=0.0) or known)[0]
            raise ConfigError(f"`{key}.{name}` is not a field of {fields['method']}. The nearest is `{key}.{guess}`.")
    try:
        # JSON is pydantic's way to read strictly what YAML can say
        return TypeAdapter(kind).validate_json(json.dumps(arguments), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error, prefix=key))) from error
    except VispeftError as error:
        raise ConfigError(f"`{key}`: {error}") from error


def _listed(names: dict[str, type[Method]]) -> str:
    return ", ".join(f"`{name}`" for name in names)
