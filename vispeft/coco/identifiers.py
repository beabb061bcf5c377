"""Conversion of ids that are text to integers while a COCO file is repaired."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from vispeft.coco.problems import Findings, show
from vispeft.coco.values import as_integer


def with_integer_ids(document: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """Return the document with an integer in place of every image and category id that is text.

    Text that spells an integer no other entry has becomes that integer, other text a new one. An annotation that names
    its class, or the file of its image, in place of the id gets the id.
    """
    for key, reference, name in (("images", "image_id", "file_name"), ("categories", "category_id", "name")):
        word = reference.removesuffix("_id")
        numbers, known = _numbers(document[key], word, findings)
        entries = [_renumbered(entry, "id", numbers, set(), {}) for entry in document[key]]
        by_name = _ids_by_name(entries, name)
        annotations = [_renumbered(entry, reference, numbers, known, by_name) for entry in document["annotations"]]
        changed = sum(new is not old for new, old in zip(annotations, document["annotations"], strict=True))
        if changed > 0 and not numbers:
            findings.warn("text-reference", "were text; now integers.", f"`{reference}` of {changed} annotations")
        document = {**document, key: entries, "annotations": annotations}
    return document


def _ids_by_name(entries: list[Any], key: str) -> dict[str, int]:
    """Return the id of each entry by its name, for unique names.

    A file is also listed without its folders and its extension.
    """
    found: dict[str, list[int]] = {}
    for entry in entries:
        name, identifier = (entry.get(key), as_integer(entry.get("id"))) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and identifier is not None:
            path = PurePosixPath(name.replace("\\", "/"))
            names = {name, path.name, path.stem} if key == "file_name" else {name}
            for one in names:
                found.setdefault(one, []).append(identifier)
    return {name: ids[0] for name, ids in found.items() if len(ids) == 1}


def _numbers(entries: list[Any], word: str, findings: Findings) -> tuple[dict[str, int], set[int]]:
    """Return the integer for each id that is text, and the set of all ids afterwards."""
    given = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    known = {number for value in given if (number := as_integer(value)) is not None}
    numbers: dict[str, int] = {}
    free = max(known, default=0) + 1
    for text in dict.fromkeys(value for value in given if isinstance(value, str)):
        number = _spelt(text)
        if number is None or number in known:
            while free in known:
                free += 1
            number = free
        numbers[text] = number
        known.add(number)
        sentence = f"{word} ids must be integers; given new ones."
        findings.warn(f"bad-{word}-id", sentence, f"{show(text)} (now {number})")
    return numbers, known


def _renumbered(entry: Any, key: str, numbers: dict[str, int], known: set[int], by_name: dict[str, int]) -> Any:
    """Return an entry with the integer that its text under `key` means; unchanged where that is not certain."""
    text = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(text, str):
        return entry
    number = numbers.get(text)
    if number is None:
        meant = {by_name.get(text), spelt if (spelt := _spelt(text)) in known else None} - {None}
        number = meant.pop() if len(meant) == 1 else None
    return entry if number is None else {**entry, key: number}


def _spelt(text: str) -> int | None:
    """Return the integer that a text holds (`7`, or `7.0` as pandas writes), or None."""
    whole, point, rest = text.partition(".")
    is_whole = whole.isdecimal() and (not point or (rest.isdecimal() and not rest.strip("0")))
    return as_integer(int(whole)) if text.isascii() and is_whole and len(whole) < 20 else None
