"""Reading and writing of JSON files, with one clear error for every failure to read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vispeft.errors import DataError


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        remedy = "Give a JSON file." if path.is_dir() else "Check the path."
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}. {remedy}") from error
    except json.JSONDecodeError as error:
        is_several = error.msg == "Extra data"  # such as one object per line
        remedy = "It must hold one value." if is_several else "If the file was cut off, write or copy it again."
        raise DataError(
            f"`{path}` is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno} (character"
            f" {error.pos}). {remedy}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"`{path}` is not a usable JSON file: {error}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; an empty one where there is no file."""
    value = read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise DataError(
            f"`{path}` must hold a JSON object, but does not. Let the command that made the run write it again."
        )
    return value


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write `value` as strict JSON (no NaN), atomically: `path` has either the old content or all of the new."""
    text = json.dumps(value, allow_nan=False, indent=indent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"`{path}` cannot be written: {error.strerror or error}.") from error
