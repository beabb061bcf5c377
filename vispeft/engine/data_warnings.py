"""Warnings of objects that a run can hardly detect: too small at network size, or too many in one image."""

from __future__ import annotations

import math
import warnings
from statistics import median

from vispeft.coco.sets import CocoSet
from vispeft.data.reading.crowded import over

LEAST_SIDE = 8.0
"""Pixels at network size; smaller objects are rarely detected."""
LARGEST_SIZE = 1024
"""Largest network input size that a warning proposes."""

WARNED_SHARE = 0.01
"""Share of dropped objects from which on there is a warning."""

_ANY_SIZE = "set it higher, or cut the images into tiles (`model.tile`)"


def warn_of_tiny_objects(train: CocoSet, size: int, min_pixels: int, *, tile: int | None = None) -> None:
    """Warn if half of the objects are tiny at network size, or if more than a few have too few pixels to be kept.

    size: longer side of the network input; min_pixels: objects with fewer pixels at that size are dropped
    tile: side of the tiles that have this size at the network; None for whole images
    """
    sides = [
        math.sqrt(annotation.area) * size / (tile or max(image.width, image.height))
        for image, group in zip(train.images, train.annotations, strict=True)
        for annotation in group
    ]
    num_dropped = sum(side * side < min_pixels for side in sides)
    is_small = bool(sides) and median(sides) < LEAST_SIDE
    if not is_small and num_dropped <= WARNED_SHARE * len(sides):
        return
    clauses = []
    if num_dropped:
        clauses.append(
            f"{num_dropped:,} of {len(sides):,} objects have fewer than {min_pixels} pixels "
            "(`data.augment.min_pixels`), so that training drops them in most augmentations"
        )
    if is_small:
        clauses.append(f"half of the objects are smaller than {median(sides):.1f} x {median(sides):.1f} pixels")
    what = "images" if tile is None else "tiles"
    warnings.warn(
        f"{train.annotations_path}: {', and '.join(clauses)}, when the longer side of {what} is {size} "
        f"(`model.image_size`). To detect more of them, {_remedy(sides, size) if is_small else _ANY_SIZE}.",
        stacklevel=3,
    )


def _remedy(sides: list[float], size: int) -> str:
    """Return a remedy that names the size at which half of the objects are large enough."""
    proposed = math.ceil(size * LEAST_SIDE / max(median(sides), 1e-6) / 32) * 32
    if proposed <= LARGEST_SIZE:
        return f"set it to {proposed}"
    return "cut the images into tiles (`model.tile`), or set it much higher"


def warn_of_crowded_images(
    train: CocoSet, val: CocoSet, *, num_queries: int, max_detections: int, is_tiled: bool = False
) -> None:
    """Warn of images with more instances than the model has queries, or than detections are kept.

    is_tiled: every tile has its own queries, so that those of an image have no limit
    """
    queries = f"the model has {num_queries} queries (`model.num_queries`)"
    kept = f"{max_detections} detections are kept per image (`eval.max_detections`)"
    limits_of_sets = [(val, {kept: max_detections} if is_tiled else {queries: num_queries, kept: max_detections})]
    if not is_tiled and train.annotations_path != val.annotations_path:
        limits_of_sets.insert(0, (train, {queries: num_queries}))
    for coco_set, limits in limits_of_sets:
        crowded = list(over(coco_set, min(limits.values())))
        if not crowded:
            continue
        entry, most = max(crowded, key=lambda pair: pair[1])
        exceeded = [text for text, limit in limits.items() if limit < most]
        warnings.warn(
            f"{coco_set.annotations_path}: {len(crowded):,} of {len(coco_set):,} images have more instances than can "
            f"be detected: {entry.file_name} has {most:,}, but {' and '.join(exceeded)}. Raise "
            f"{'both' if len(exceeded) > 1 else 'it'}, or cut the images into tiles (`model.tile`).",
            stacklevel=3,
        )
