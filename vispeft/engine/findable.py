"""Objects of a data set that a run can never find: too small for its network input, or too many in one image."""

from __future__ import annotations

import math
import warnings
from statistics import median

from vispeft.coco.sets import CocoSet
from vispeft.data.reading.crowded import over

LEAST_SIDE = 8.0
"""Pixels of the network's input: of smaller objects hardly any is found."""
LARGEST_SIZE = 1024

_ANY_SIZE = "set it higher, or cut the pictures into tiles"

WORTH_TELLING = 0.01
"""Share of objects from which on those that vanish are told."""


def warn_of_tiny_objects(train: CocoSet, size: int, min_pixels: int) -> None:
    """Warn where half of the objects are hard to find at network size, or where some cover too few pixels to stay.

    size: longer side of the network input; min_pixels: objects with fewer pixels there are dropped
    """
    sides = [
        math.sqrt(annotation.area) * size / max(image.width, image.height)
        for image, group in zip(train.images, train.annotations, strict=True)
        for annotation in group
    ]
    num_dropped = sum(side * side < min_pixels for side in sides)
    is_small = bool(sides) and median(sides) < LEAST_SIDE
    if not is_small and num_dropped <= WORTH_TELLING * len(sides):
        return
    told = []
    if num_dropped:
        told.append(
            f"{num_dropped:,} of {len(sides):,} objects cover fewer than {min_pixels} pixels "
            "(`data.augment.min_pixels`), so that training drops them in most draws"
        )
    if is_small:
        told.append(f"half of the objects are smaller than {median(sides):.1f} x {median(sides):.1f} pixels")
    warnings.warn(
        f"{train.annotations_path}: {', and '.join(told)}, when the longer side of images is {size} "
        f"(`model.image_size`). To find more of them, {_remedy(sides, size) if is_small else _ANY_SIZE}.",
        stacklevel=3,
    )


def _remedy(sides: list[float], size: int) -> str:
    wanted = math.ceil(size * LEAST_SIDE / max(median(sides), 1e-6) / 32) * 32
    return f"set it to {wanted}" if wanted <= LARGEST_SIZE else "cut the pictures into tiles, or set it much higher"


def warn_of_crowded_images(train: CocoSet, val: CocoSet, *, num_queries: int, max_detections: int) -> None:
    """Warn of images with more instances than the model has queries or than are kept of its detections."""
    queries = f"the model has {num_queries} queries (`model.options.num_queries`; more need another base)"
    kept = f"{max_detections} detections are kept per image (`eval.max_detections`)"
    limits_of_val = {queries: num_queries, kept: max_detections}
    told = [(val, limits_of_val)]
    if train.annotations_path != val.annotations_path:
        told.insert(0, (train, {queries: num_queries}))
    for coco_set, limits in told:
        crowded = list(over(coco_set, min(limits.values())))
        if not crowded:
            continue
        entry, most = max(crowded, key=lambda pair: pair[1])
        exceeded = [text for text, limit in limits.items() if limit < most]
        warnings.warn(
            f"{coco_set.annotations_path}: {len(crowded):,} of {len(coco_set):,} images hold more instances than can "
            f"be found: {entry.file_name} holds {most:,}, but {' and '.join(exceeded)}. Raise "
            f"{'both' if len(exceeded) > 1 else 'it'}, or cut the images into tiles.",
            stacklevel=3,
        )
