"""Classes of a COCO file: each has an id and a name of its own, or is reported with the cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

from vispeft.coco.problems import Findings, show
from vispeft.coco.sets import Category
from vispeft.coco.text import number_of
from vispeft.coco.values import as_integer, as_number, is_text, why_no_id

_ENTRY = 'write each as an object: {"id": 1, "name": "cat"}'


def with_category_list(document: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """The document with a list of categories, where it has an object of names by id, or of ids by name."""
    given = document.get("categories")
    if not isinstance(given, dict) or not given:
        return document
    pairs = [(number_of(key), value) if isinstance(value, str) else (value, key) for key, value in given.items()]
    entries = [{"id": identifier, "name": name} for key, name in pairs if (identifier := as_integer(key)) is not None]
    if not len(entries) == len(given) == len({entry["id"] for entry in entries}):
        return document
    findings.refuse(
        "bad-categories",
        f"`categories` must be a list, but is {show(given)}; {_ENTRY}.",
        "",
        repair="`categories` was an object of ids and names; written as a list.",
    )
    return {**document, "categories": entries}


def read_categories(raw: list[Any], annotations: list[Any], findings: Findings) -> dict[int, Category]:
    """Categories by id, sorted by id."""
    used = {as_integer(item.get("category_id")) for item in annotations if isinstance(item, dict)}
    listed = {as_integer(entry.get("id")) for entry in raw if isinstance(entry, dict)}
    categories: dict[int, Category] = {}
    for place, entry in enumerate(raw):
        if not isinstance(entry, dict):
            findings.refuse("bad-category", f"is no object; {_ENTRY}.", f"categories[{place}] {show(entry)}")
            continue
        identifier = _id_of(entry, place, used <= listed | {None}, findings)
        name = _name_of(entry, place, identifier in used, findings)
        if name is None and identifier in used:
            name = f"id {identifier}"  # the file is refused; do not report its annotations, too
        if identifier is None or name is None:
            continue
        if identifier in categories and categories[identifier].name != name:
            names = f"category id {identifier} ({show(categories[identifier].name)} and {show(name)})"
            findings.refuse("duplicate-category-id", "is used by two categories; give each its own id.", names)
        else:
            categories[identifier] = Category(identifier, name)
    return _with_own_names(dict(sorted(categories.items())), used, findings)


def _id_of(entry: Mapping[str, Any], place: int, is_spare: bool, findings: Findings) -> int | None:
    """The id of a category, or None, which is reported. is_spare: every annotation's category is listed without it"""
    identifier = as_integer(entry.get("id"))
    if identifier is None:
        reason = f"its `id` {why_no_id(entry.get('id'))}"
        findings.refuse(
            "bad-category-id",
            f"{reason}; give each category an integer `id`.",
            f"categories[{place}] {show(dict(entry))}",
            repair=f"{reason}; left out." if is_spare else "",
        )
    return identifier


def _name_of(entry: Mapping[str, Any], place: int, is_used: bool, findings: Findings) -> str | None:
    """The name of a category, or None, which is reported. A number is a name without its quotes."""
    name = entry.get("name")
    subject = f"categories[{place}] {show(dict(entry))}"
    if as_number(name) is not None:
        whole = as_integer(name)
        text = str(name if whole is None else whole)
        sentence = "its `name` is a number; write it in quotes."
        findings.refuse("number-as-name", sentence, subject, repair="its `name` was a number; written as text.")
        return text
    if isinstance(name, str) and is_text(name):
        return _tidy(name, findings)
    missing = name is None or (isinstance(name, str) and not name.strip())
    cause = "has no `name`" if missing else "its `name` is no text that can be printed"
    repair = "" if is_used else f"{cause}, and no annotation uses it; left out."
    findings.refuse("no-category-name", f"{cause}; give it one.", subject, repair=repair)
    return None


def _tidy(name: str, findings: Findings) -> str:
    """A name without spaces at its ends and without control characters while a file is repaired, else as it is."""
    tidy = (
        " ".join("".join(" " if _is_control(c) else c for c in name).split()) if any(map(_is_control, name)) else name
    )
    tidy = tidy.strip()
    if tidy == name or not tidy:
        return name
    outcome = "taken out" if findings.is_repairing else "kept, and classes are matched by the whole name"
    findings.warn("untidy-name", f"its name has spaces at the ends or control characters; {outcome}.", _quoted(name))
    return tidy if findings.is_repairing else name


def _is_control(character: str) -> bool:
    return ord(character) < 32 or ord(character) == 127


def _quoted(name: str) -> str:
    return f"category {show([name])[1:-1]}"


def _with_own_names(categories: dict[int, Category], used: Set[int | None], findings: Findings) -> dict[int, Category]:
    counts = Counter(category.name for category in categories.values())
    for name, count in counts.items():
        if count == 1:
            continue
        ids = [category.id for category in categories.values() if category.name == name]
        kept = [identifier for identifier in ids if identifier in used] or ids[:1]
        _refuse_unused(name, ids, [identifier for identifier in ids if identifier not in kept], findings)
        categories = {key: value for key, value in categories.items() if key in kept or key not in ids}
        if len(kept) > 1:
            findings.refuse(
                "duplicate-category-name",
                "several categories have the same name; classes are known by name: rename or unite them.",
                f"`{show(name)}` (ids {', '.join(map(str, kept))})",
                repair="several categories have the same name; the id is added to it.",
            )
            categories |= {identifier: Category(identifier, f"{name} {identifier}") for identifier in kept}
    return categories


def _refuse_unused(name: str, ids: list[int], unused: list[int], findings: Findings) -> None:
    """Tell of categories with the name of another that no annotation uses, such as the root that Roboflow writes."""
    for identifier in unused:
        findings.refuse(
            "unused-category-of-same-name",
            "several categories have the same name, and no annotation uses this one (a group, as Roboflow writes?); "
            "remove it from `categories`.",
            f"id {identifier} of `{show(name)}` (ids {', '.join(map(str, ids))})",
            repair="several categories have the same name, and no annotation uses this one; left out.",
        )
