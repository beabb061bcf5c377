"""Messages for pydantic's validation errors, one sentence per key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vispeft.config.strict_yaml import describe
from vispeft.io.names import nearest_names

_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def sentences(
    error: ValidationError, *, known: Sequence[str] = (), overridden: Sequence[tuple[str, ...]] = (), prefix: str = ""
) -> list[str]:
    """Return one sentence per wrong key, with its full dotted path.

    known: the dotted keys that exist
    overridden: the paths that the command line set
    prefix: dotted path of the section with the keys
    """
    return [_sentence(details, known, overridden, prefix) for details in error.errors()]


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known dotted name that `name` most likely means, or None."""
    last = name.rpartition(".")[2]
    same_last = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    close = nearest_names(name, same_last or known, cutoff=0.0 if same_last else 0.6)
    if close:
        return close[0]
    by_last = {candidate.rpartition(".")[2]: candidate for candidate in reversed(known)}
    close = nearest_names(last, by_last, cutoff=0.7)
    return by_last[close[0]] if close else None


def known_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a configuration, sections included, with `*` for a name that the user chose."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for section, infix in _sections_of(field.annotation):
            yield from known_keys(section, f"{prefix}{name}.{infix}")


def _sections_of(annotation: Any, infix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the section types of a field's annotation, with the infix `*.` for a mapping by names of the user."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, infix
    is_mapping = get_origin(annotation) is dict
    for argument in get_args(annotation):
        yield from _sections_of(argument, "*." if is_mapping else infix)


def _sentence(details: ErrorDetails, known: Sequence[str], overridden: Sequence[tuple[str, ...]], prefix: str) -> str:
    path = tuple(str(part) for part in ([prefix] if prefix else []) + list(details["loc"]))
    key, kind, context = ".".join(path), details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        key = next((".".join(o) for o in overridden if o[: len(path)] == path), key)
        # `known` has `*` for a name that the user chose
        in_named = ".".join((*path[:-2], "*", path[-1]))
        is_named = any(candidate.startswith(in_named.removesuffix(path[-1])) for candidate in known)
        guess = nearest(in_named if is_named else key, known)
        guess = guess.replace("*", path[-2]) if guess and is_named else guess
        # an unquoted pattern is split into keys at its dots
        remedy = f" Write a pattern with dots as `{'.'.join(path[:-2])}={{'a.b': {{...}}}}`." if is_named else ""
        return f"`{key}` is not a configuration key.{f' Did you mean `{guess}`?' if guess else ''}{remedy}"
    if kind == "missing":
        return f"`{key}` must be set."
    if kind == "literal_error":
        return f"`{key}` must be {context['expected']}, but is {describe(details['input'])}."
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        return f"`{key}` must be {word} {context[name]:g}, but is {describe(details['input'])}."
    if kind in ("too_long", "too_short"):
        return f"`{key}` must have {context.get('max_length', context.get('min_length'))} entries."
    if kind == "value_error":
        return str(context["error"])
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"`{key}`: {details['msg']}."
    return f"`{key}` must be {expected}, but is {describe(details['input'])}."
