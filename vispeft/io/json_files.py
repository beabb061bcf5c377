"""Reading and writing of JSON files, with one clear error for every failure."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from vispeft.errors import DataError, VispeftError
from vispeft.io.atomic import write_text

# gzip, zip, bzip2, xz
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")

Pairs = list[tuple[str, Any]]


class UnreadableJsonError(Exception):
    """A file that is not there or is not JSON.

    kind: "no-file" or "not-json"
    sentence: the fault, worded to follow the name of the file, without a full stop: "is empty"
    """

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence


def load_json(path: Path, *, build_object: Callable[[Pairs], Any] = dict) -> Any:
    """Return the content of a JSON file, or raise UnreadableJsonError; the caller adds the name of the file.

    build_object: makes an object of its keys and values, in the order of the file
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UnreadableJsonError("no-file", "does not exist; check the path") from error
    except IsADirectoryError as error:
        raise UnreadableJsonError("no-file", "must be a JSON file, but is a folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableJsonError("no-file", f"cannot be read ({reason})") from error
    if not content.strip():
        raise UnreadableJsonError("not-json", "is empty, so it is not valid JSON")
    if content.startswith(_COMPRESSED):
        raise UnreadableJsonError("not-json", "is not JSON but a compressed file; unpack it first")
    return _parsed(content, build_object)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or raise a DataError."""
    try:
        return load_json(path)
    except UnreadableJsonError as error:
        raise DataError(f"`{path}` {error.sentence}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; an empty one where there is no file."""
    value = read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise DataError(
            f"`{path}` must hold a JSON object, but does not. Let the command that made the run write it again."
        )
    return value


def write_json(
    path: Path, value: Any, *, raises: type[VispeftError], indent: int | None = None, allow_nan: bool = False
) -> None:
    """Write a JSON file atomically.

    raises: error for a file that cannot be written
    allow_nan: accept numbers that are not finite, which strict JSON has not; for copies of what a user's file holds
    """
    write_text(path, json.dumps(value, allow_nan=allow_nan, indent=indent), raises=raises)


def _parsed(content: bytes, build_object: Callable[[Pairs], Any]) -> Any:
    if build_object is dict:
        # the same values in half the time; it is stricter, and its messages have no place
        with contextlib.suppress(ValueError, RecursionError):
            return msgspec.json.decode(content)
    try:
        # the default is much faster without a call for each object
        return json.loads(content, object_pairs_hook=None if build_object is dict else build_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno} (character {error.pos})"
        reason = f"{error.msg.removesuffix(' at')} at {place}{_hint(error)}"
        raise UnreadableJsonError("not-json", f"is not valid JSON: {reason}") from error
    except UnicodeDecodeError as error:
        sentence = f"is not valid JSON: it is no UTF-8 text (byte {error.start}); save it as UTF-8"
        raise UnreadableJsonError("not-json", sentence) from error
    except RecursionError as error:
        raise UnreadableJsonError("not-json", "is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise UnreadableJsonError("not-json", f"is not valid JSON: {str(error).split(';')[0]}") from error


def _hint(error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data":
        # such as one object per line
        return "; it must hold one value"
    text = error.doc.rstrip()
    is_cut_off = error.pos >= len(text) - (text[-1:] not in ("]", "}")) or error.msg.startswith("Unterminated string")
    return "; the file seems to be cut off, so write or copy it again" if is_cut_off else ""
