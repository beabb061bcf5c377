"""The levels of a feature pyramid laid out in one zero-padded plane per head, so that all share one row stride."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
BORDER = 2  # pixels of zeros on each side: a point clamped to the border has both its corners in zeros


@dataclass(frozen=True)
class Atlas:
    """Where each level lies in a plane of `rows` pixels; a pixel and the one below it are `stride` apart."""

    shapes: Shapes  # (H, W) of each level
    stride: int
    rows: int
    starts: tuple[int, ...]  # of pixel (0, 0) of each level


@lru_cache(maxsize=64)
def plan_atlas(shapes: Shapes) -> Atlas:
    """Put levels on shelves as wide as the widest, higher ones first; neighbours and line ends share their borders."""
    stride = max(width for _, width in shapes) + BORDER
    starts = [0] * len(shapes)
    top, left, bottom = BORDER, stride, BORDER
    for idx in sorted(range(len(shapes)), key=lambda idx: (-shapes[idx][0], -shapes[idx][1])):
        height, width = shapes[idx]
        if left + width + BORDER > stride:  # the next shelf
            top, left, bottom = bottom, 0, bottom + height + BORDER
        starts[idx] = BORDER + top * stride + left
        left += width + BORDER
    return Atlas(shapes, stride, BORDER + bottom * stride, tuple(starts))


def fill_planes(planes: Tensor, value: Tensor, atlas: Atlas) -> None:
    """Copy the pixels of value [B, S, heads, dim] into planes [B, rows, heads, dim]; the borders stay."""
    for pixels, level in zip(_levels(planes, atlas), _pixels(value, atlas), strict=True):
        pixels.copy_(level)


def read_planes(planes: Tensor, value: Tensor, atlas: Atlas) -> None:
    """Copy the pixels of planes [B, rows, heads, dim] into value [B, S, heads, dim]."""
    for pixels, level in zip(_levels(planes, atlas), _pixels(value, atlas), strict=True):
        level.copy_(pixels)


def _levels(planes: Tensor, atlas: Atlas) -> list[Tensor]:
    """Each level of planes [B, rows, heads, dim] as a view [B, H, W, heads, dim]."""
    image, row, head, channel = planes.stride()
    return [
        planes.as_strided(
            (planes.shape[0], height, width, *planes.shape[2:]),
            (image, atlas.stride * row, row, head, channel),
            planes.storage_offset() + start * row,
        )
        for (height, width), start in zip(atlas.shapes, atlas.starts, strict=True)
    ]


def _pixels(value: Tensor, atlas: Atlas) -> list[Tensor]:
    """Each level of value [B, S, heads, dim] as a view [B, H, W, heads, dim]."""
    levels = torch.split(value, [height * width for height, width in atlas.shapes], dim=1)
    return [
        level.view(level.shape[0], *shape, *level.shape[2:]) for shape, level in zip(atlas.shapes, levels, strict=True)
    ]
