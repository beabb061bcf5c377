"""Image and category that an annotation refers to; a missing one is reported with the cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from vispeft.coco.problems import Findings, show
from vispeft.coco.sets import Category, ImageEntry
from vispeft.coco.values import as_integer, why_no_id


class References:
    """Finder of the images and categories that annotations refer to.

    listed: ids of all images in the file, also of those whose file cannot be used, which is reported already
    """

    def __init__(
        self,
        raw: Sequence[Any],
        categories: Mapping[int, Category],
        entries: Mapping[int, ImageEntry],
        listed: Set[int | None],
        findings: Findings,
    ) -> None:
        self._category_idx = {identifier: idx for idx, identifier in enumerate(categories)}
        self._entries, self._listed, self._findings = entries, listed, findings
        items = [item for item in raw if isinstance(item, dict)]
        self._lacks_classes = bool(items) and all(item.get("category_id") is None for item in items)
        if self._lacks_classes:
            findings.refuse("no-category-id", "no annotation has a `category_id`; give each the id of its class.", "")
        used = {identifier for item in items if (identifier := as_integer(item.get("category_id"))) is not None}
        self._shift = _shift_of(used, set(categories))

    def category_of(self, item: Mapping[str, Any], name: str) -> int | None:
        """Return the class index of an annotation, or None, which is reported."""
        value = item.get("category_id")
        identifier = as_integer(value)
        if identifier in self._category_idx:
            return self._category_idx[identifier]
        if identifier is not None:
            if not self._category_idx:
                return None  # no category could be read, which is reported
            if self._shift:
                self._refuse_shift(identifier, name)
                return None
            self._refuse(
                "unknown-category",
                "its category is not in `categories`",
                "add it there or remove the annotation",
                f"{name} (category_id {show(value)})",
            )
        elif not self._lacks_classes:
            self._refuse_id("category_id", "category-id", "of its class", value, name)
        return None

    def entry_of(self, item: Mapping[str, Any], name: str) -> ImageEntry | None:
        """Return the image of an annotation, or None, which is reported unless the image itself was."""
        value = item.get("image_id")
        identifier = as_integer(value)
        if identifier is None:
            self._refuse_id("image_id", "image-id", "of its image", value, name)
            return None
        if identifier not in self._entries and identifier not in self._listed:
            subject = f"{name} (image_id {show(value)})"
            self._findings.warn("unknown-image", "its image is not in `images`; left out.", subject)
        return self._entries.get(identifier)

    def _refuse_shift(self, identifier: int, name: str) -> None:
        """Refuse category ids that are all shifted by 1: the known ones would be trained under wrong names."""
        change = "added to" if self._shift > 0 else "taken from"
        sentence = (
            f"its category is not in `categories`, but all are with 1 {change} every `category_id`; correct the ids, "
            "or remove these annotations."
        )
        self._findings.refuse("shifted-categories", sentence, f"{name} (category_id {identifier})")

    def _refuse_id(self, key: str, kind: str, owner: str, value: Any, name: str) -> None:
        reason = why_no_id(value)
        remedy = f"give the integer id {owner}"
        if isinstance(value, str):
            remedy = f"write the integer id {owner}, without quotes"
        subject = name if value is None else f"{name} ({key} {show(value)})"
        self._refuse(f"{'no' if value is None else 'bad'}-{kind}", f"`{key}` {reason}", remedy, subject)

    def _refuse(self, kind: str, cause: str, remedy: str, subject: str) -> None:
        self._findings.refuse(kind, f"{cause}; {remedy}.", subject, repair=f"{cause}; left out.")


def _shift_of(used: Set[int], listed: Set[int]) -> int:
    """Return the shift, 1 or -1, that makes all used category ids listed ones; 0 where no shift is needed or fits."""
    if used <= listed:
        return 0
    return next((shift for shift in (1, -1) if {identifier + shift for identifier in used} <= listed), 0)
