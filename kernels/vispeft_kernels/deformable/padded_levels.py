"""The levels of a feature pyramid laid out in one zero-padded plane per head, so that all share one row stride."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
BORDER = 2  # pixels of zeros on each side: a point clamped to the border has both its corners among them


@dataclass(frozen=True)
class PaddedLevels:
    """Positions of levels in a plane of `rows` pixels, in which a pixel and the one below it are `stride` apart."""

    shapes: Shapes  # (H, W) of each level
    stride: int
    rows: int
    first_pixels: tuple[int, ...]  # of pixel (0, 0) of each level


@lru_cache(maxsize=64)
def pad_levels(shapes: Shapes) -> PaddedLevels:
    """Place levels on shelves as wide as the widest one, the highest first; neighbours and line ends share borders."""
    stride = max(width for _, width in shapes) + BORDER
    first_pixels = [0] * len(shapes)
    top, left, bottom = BORDER, stride, BORDER
    for idx in sorted(range(len(shapes)), key=lambda idx: (-shapes[idx][0], -shapes[idx][1])):
        height, width = shapes[idx]
        if left + width + BORDER > stride:  # the next shelf
            top, left, bottom = bottom, 0, bottom + height + BORDER
        first_pixels[idx] = BORDER + top * stride + left
        left += width + BORDER
    return PaddedLevels(shapes, stride, BORDER + bottom * stride, tuple(first_pixels))


def level_views(planes: Tensor, value: Tensor, layout: PaddedLevels) -> Iterator[tuple[Tensor, Tensor]]:
    """Views [B, H, W, heads, dim] of each level: in planes [B, rows, heads, dim] and in value [B, S, heads, dim]."""
    return zip(_levels_of_planes(planes, layout), _levels_of_value(value, layout), strict=True)


def _levels_of_planes(planes: Tensor, layout: PaddedLevels) -> list[Tensor]:
    image, row, head, channel = planes.stride()
    return [
        planes.as_strided(
            (planes.shape[0], height, width, *planes.shape[2:]),
            (image, layout.stride * row, row, head, channel),
            planes.storage_offset() + first * row,
        )
        for (height, width), first in zip(layout.shapes, layout.first_pixels, strict=True)
    ]


def _levels_of_value(value: Tensor, layout: PaddedLevels) -> list[Tensor]:
    levels = torch.split(value, [height * width for height, width in layout.shapes], dim=1)
    return [
        level.view(level.shape[0], *shape, *level.shape[2:]) for shape, level in zip(layout.shapes, levels, strict=True)
    ]
