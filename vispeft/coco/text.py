"""Parser of lists and objects that a file holds as text: quoted JSON, and printed Python and numpy values."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

LONGEST_TEXT = 4_000_000

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_ONE_NUMBER = re.compile(_NUMBER)
_NUMBERS = re.compile(rf"{_NUMBER}(?:[\s,;]+{_NUMBER})+")
_DTYPE = re.compile(r",\s*dtype=[\w.'<>|]+")
_CALL = re.compile(r"\b(?:(?:np|numpy)\.)?(?:array|float\d*|u?int\d+|str_|tuple|list)\(")
# numpy prints no commas
_GAP = re.compile(r"(?<=[\d.\]])\s+(?=[-+\d.\[])")


def read_text(text: str) -> Any:
    """Return the list or object that a text holds, or None."""
    if len(text) > LONGEST_TEXT:
        return None
    if _NUMBERS.fullmatch(text.strip()):
        return [as_plain(number) for number in _ONE_NUMBER.findall(text)]
    for read in (json.loads, _read_python):
        try:
            value = read(text)
        # what JSON's and Python's readers raise for text that they do not take
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return _plain(value) if isinstance(value, list | tuple | dict) else None
    return None


def number_of(value: Any) -> Any:
    """Return the number that a text such as "12.5" holds; any other value unchanged."""
    if isinstance(value, str) and _ONE_NUMBER.fullmatch(value.strip()):
        return as_plain(value.strip())
    return value


def as_plain(text: str) -> int | float:
    """Return a number of plain digits as an integer, any other as a float."""
    digits = text.lstrip("+-")
    return int(text) if digits.isdecimal() and len(digits) < 19 else float(text)


def read_bytes(text: str) -> str | None:
    """Return the text within printed Python bytes, b'...', or None for other text."""
    stripped = text.strip()
    if stripped[:2] not in ("b'", 'b"'):
        return None
    try:
        value = ast.literal_eval(stripped)
        return value.decode("ascii") if isinstance(value, bytes) else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _read_python(text: str) -> Any:
    return ast.literal_eval(_GAP.sub(", ", _CALL.sub("(", _DTYPE.sub("", text.strip()))))


def _plain(value: Any) -> Any:
    """Return the value in JSON types: tuples as lists, bytes as text."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
