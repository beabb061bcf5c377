"""The levels of a feature pyramid laid out in one zero-padded plane per head, so that all share one row stride."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
BORDER = 2  # pixels of zeros on each side: a point clamped to the border has both its corners in zeros


@dataclass(frozen=True)
class PaddedLevels:
    """Positions of levels in a plane of `rows` pixels, in which a pixel and the one below it are `stride` apart."""

    shapes: Shapes  # (H, W) of each level
    stride: int
    rows: int
    first_pixels: tuple[int, ...]  # of pixel (0, 0) of each level


@lru_cache(maxsize=64)
def pad_levels(shapes: Shapes) -> PaddedLevels:
    """Lay levels out on shelves as wide as the widest, higher ones first; neighbours and line ends share borders."""
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


def fill_planes(planes: Tensor, value: Tensor, layout: PaddedLevels) -> None:
    """Copy the pixels of value [B, S, heads, dim] into planes [B, rows, heads, dim]; the borders stay."""
    for pixels, level in zip(_levels(planes, layout), _pixels(value, layout), strict=True):
        pixels.copy_(level)


def read_planes(planes: Tensor, value: Tensor, layout: PaddedLevels) -> None:
    """Copy the pixels of planes [B, rows, heads, dim] into value [B, S, heads, dim]."""
    for pixels, level in zip(_levels(planes, layout), _pixels(value, layout), strict=True):
        level.copy_(pixels)


def _levels(planes: Tensor, layout: PaddedLevels) -> list[Tensor]:
    """Return each level of planes [B, rows, heads, dim] as a view [B, H, W, heads, dim]."""
    image, row, head, channel = planes.stride()
    return [
        planes.as_strided(
            (planes.shape[0], height, width, *planes.shape[2:]),
            (image, layout.stride * row, row, head, channel),
            planes.storage_offset() + start * row,
        )
        for (height, width), start in zip(layout.shapes, layout.first_pixels, strict=True)
    ]


def _pixels(value: Tensor, layout: PaddedLevels) -> list[Tensor]:
    """Return each level of value [B, S, heads, dim] as a view [B, H, W, heads, dim]."""
    levels = torch.split(value, [height * width for height, width in layout.shapes], dim=1)
    return [
        level.view(level.shape[0], *shape, *level.shape[2:]) for shape, level in zip(layout.shapes, levels, strict=True)
    ]
