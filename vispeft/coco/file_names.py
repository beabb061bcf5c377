"""Image entries that name their file under another key than `file_name`, as LVIS and some tools do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vispeft.coco.problems import Findings, show
from vispeft.coco.values import as_integer, is_text

OTHER_KEYS = (
    "coco_url",
    "filename",
    "fileName",
    "path",
    "file",
    "file_path",
    "filepath",
    "image_path",
    "flickr_url",
    "url",
)


def other_key(item: Mapping[str, Any]) -> str | None:
    """Return the key other than `file_name` under which an image entry names its file, or None."""
    return next((key for key in OTHER_KEYS if isinstance(item.get(key), str) and is_text(item[key])), None)


def why_no_file_name(item: Mapping[str, Any]) -> str:
    """Return the fault and the remedy of the `file_name` of an image entry that cannot be used."""
    key = other_key(item) if item.get("file_name") is None else None
    if key is None:
        return "must have a `file_name` that a file can have."
    source = "the last parts of its address" if key.endswith("url") else "it"
    return f"has no `file_name` but `{key}`; write {source} as `file_name`, relative to the image folder."


def with_file_names(document: dict[str, Any], folder: Path | None, findings: Findings) -> dict[str, Any]:
    """Return the document with a `file_name` for images that name an existing file under another key."""
    if folder is None:
        return document
    return {**document, "images": [_named(item, folder, findings) for item in document["images"]]}


def _named(item: Any, folder: Path, findings: Findings) -> Any:
    if not isinstance(item, dict) or item.get("file_name") is not None or (key := other_key(item)) is None:
        return item
    found = _found(item[key], folder, is_address=key.endswith("url"))
    if found is None:
        return item
    identifier = as_integer(item.get("id"))
    subject = f"image {show(item.get('id')) if identifier is None else identifier} ({found})"
    findings.warn("file-name-from-other-key", f"no `file_name`; taken from `{key}`.", subject)
    return {**item, "file_name": found}


def _found(value: str, folder: Path, *, is_address: bool) -> str | None:
    """Return the longest end of a path or URL that names a file in the folder, or None."""
    path = unquote(urlsplit(value).path) if is_address or "://" in value else value
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        return None
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        try:
            if (folder / name).is_file():
                return name
        except (OSError, ValueError):
            continue
    return None
