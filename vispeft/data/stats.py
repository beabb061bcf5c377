"""Counts of a data set: per class, per size, per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from vispeft.coco.sets import Annotation, CocoSet

SMALL_BELOW = 32.0**2
MEDIUM_BELOW = 96.0**2


@dataclass(frozen=True)
class ClassStats:
    """Statistics of one class. small, medium, large: instances by COCO's areas, 32 x 32 and 96 x 96 pixels."""

    name: str
    instances: int
    images: int
    small: int
    medium: int
    large: int


@dataclass(frozen=True)
class SetStats:
    """Statistics of a whole set.

    per_image: least, median and most instances of an image
    sizes: (width, height, images of that size), the most frequent first
    """

    images: int
    empty_images: int
    instances: int
    crowds: int
    per_image: tuple[int, float, int]
    sizes: tuple[tuple[int, int, int], ...]
    classes: tuple[ClassStats, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def set_stats(coco_set: CocoSet) -> SetStats:
    """Return the statistics of a set."""
    counts = [len(group) for group in coco_set.annotations]
    sizes = Counter((image.width, image.height) for image in coco_set.images)
    by_class: list[list[Annotation]] = [[] for _ in coco_set.categories]
    for group in coco_set.annotations:
        for annotation in group:
            by_class[annotation.category_idx].append(annotation)
    return SetStats(
        images=len(coco_set),
        empty_images=counts.count(0),
        instances=sum(counts),
        crowds=sum(map(len, coco_set.crowds)),
        per_image=(min(counts), median(counts), max(counts)),
        sizes=tuple((*size, count) for size, count in sizes.most_common()),
        classes=tuple(map(_class_stats, coco_set.class_names, by_class)),
    )


def _class_stats(name: str, annotations: Sequence[Annotation]) -> ClassStats:
    small = sum(a.area < SMALL_BELOW for a in annotations)
    large = sum(a.area >= MEDIUM_BELOW for a in annotations)
    images = len({a.image_id for a in annotations})
    return ClassStats(name, len(annotations), images, small, len(annotations) - small - large, large)


def format_stats(stats: SetStats) -> str:
    """Return the statistics as a table for the terminal."""
    least, middle, most = stats.per_image
    sizes = ", ".join(f"{width}x{height} ({count})" for width, height, count in stats.sizes[:5])
    more = f" and {len(stats.sizes) - 5} more" if len(stats.sizes) > 5 else ""
    lines = [
        f"images       {stats.images:,} ({stats.empty_images:,} without an instance)",
        f"instances    {stats.instances:,}, and {stats.crowds:,} crowd regions",
        f"per image    {least} / {middle:g} / {most} (least / median / most)",
        f"image sizes  {sizes}{more}",
        "",
    ]
    width = max([len(c.name) for c in stats.classes] + [5])
    lines.append(f"{'class':<{width}}  instances  images   small  medium   large")
    for c in sorted(stats.classes, key=lambda c: -c.instances):
        lines.append(f"{c.name:<{width}}  {c.instances:9,}  {c.images:6,}  {c.small:6,}  {c.medium:6,}  {c.large:6,}")
    return "\n".join(lines)
