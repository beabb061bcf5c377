"""Images with more instances than a model can find or than COCO counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vispeft.coco.problems import Findings, Problem, show
from vispeft.coco.sets import CocoSet, ImageEntry

COCO_DETECTIONS = 100
"""Detections of one class in one image that COCO's metrics count."""

USUAL_QUERIES = 300
"""Queries of the published models: the most instances that one image can get."""


def crowded_problems(coco_set: CocoSet) -> tuple[Problem, ...]:
    """Warnings of images with more instances than COCO counts of a class, or than models usually have queries."""
    findings = Findings()
    for entry, count in over(coco_set, USUAL_QUERIES):
        findings.warn(
            "crowded-image",
            f"more instances than the {USUAL_QUERIES} queries that models usually have, so that some can never be "
            "found (the bundled one has 100): take a model with more queries and keep more detections per image, or "
            "cut the images into tiles (`model.tile`).",
            _subject(entry, count),
        )
    for entry, count in over(coco_set, COCO_DETECTIONS, by_class=True):
        findings.warn(
            "crowded-class",
            f"more instances of one class than the {COCO_DETECTIONS} detections that COCO's metrics count in an image, "
            "so that their recall stays below 1: see `AP@N` and `AR@N` (`eval.max_detections`).",
            _subject(entry, count),
        )
    return findings.problems()


def over(coco_set: CocoSet, limit: int, *, by_class: bool = False) -> Iterator[tuple[ImageEntry, int]]:
    """Images with more instances than `limit`, in all or of one class, and how many they have."""
    for entry, group in zip(coco_set.images, coco_set.annotations, strict=True):
        if len(group) > limit:
            count = max(Counter(a.category_idx for a in group).values()) if by_class else len(group)
            if count > limit:
                yield entry, count


def _subject(entry: ImageEntry, count: int) -> str:
    return f"{show(entry.file_name)} ({count:,} instances)"
