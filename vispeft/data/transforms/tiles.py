"""Division of large images into overlapping tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vispeft.coco.sets import Annotation
from vispeft.data.transforms.geometry import View
from vispeft.errors import ConfigError


class Tile(NamedTuple):
    """Rectangle of an image, in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of one size that cover an image.

    side: of the square tiles in pixels of the image; a side of the image that is shorter has one tile
    overlap: least part of a tile's side that it shares with the next one
    """

    side: int
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.side < 1 or not 0 <= self.overlap < 1:
            raise ConfigError(
                f"Tiles must have a side of at least 1 pixel and an overlap in 0..1, below 1, but have {self.side} and "
                f"{self.overlap}."
            )

    def tiles(self, height: int, width: int) -> list[Tile]:
        """Return the tiles of an image, by rows, evenly spaced."""
        side = self.side
        return [
            Tile(left, top, min(left + side, width), min(top + side, height))
            for top in self._starts(height)
            for left in self._starts(width)
        ]

    def _starts(self, length: int) -> list[int]:
        free = length - self.side
        if free <= 0:
            return [0]
        step = max(1, int(self.side * (1 - self.overlap)))
        count = 1 - (-free // step)
        return [round(place * free / (count - 1)) for place in range(count)]


def tile_view(tile: Tile, tiling: Tiling, image_size: int) -> View:
    """Return the view of a tile, at the scale at which a whole tile has `image_size` pixels."""
    zoom = image_size / tiling.side
    width, height = (max(round(length * zoom), 1) for length in (tile.right - tile.left, tile.bottom - tile.top))
    return View(*tile, width, height)


def inside(annotations: Sequence[Annotation], view: View) -> list[Annotation]:
    """Return the annotations whose extent reaches into a view."""
    kept = []
    for annotation in annotations:
        (left, top), (right, bottom) = annotation.segmentation.extent
        if left < view.right and right > view.left and top < view.bottom and bottom > view.top:
            kept.append(annotation)
    return kept
