"""Geometry of a network input: one crop, scale, turn and flip, applied alike to pixels, points and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.coco.segmentation import FloatArray, Polygons, Rle, Segmentation, rasterize
from vispeft.data.reading.images import Picture

# channels that OpenCV averages at once
_RESIZED_AT_ONCE = 4
AREA_BELOW = 0.6
"""Below this scale the pixels that fall together are averaged; above it bilinear is as good, and faster."""


@dataclass(frozen=True, slots=True)
class View:
    """A window of the image, in order: cut, scaled, turned counter-clockwise, mirrored.

    left, top, right, bottom: the window in pixels of the image, within it
    width, height: the window's size after scaling, before turning, at least 1
    quarter_turns: 0 to 3
    """

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int
    quarter_turns: int = 0
    is_mirrored: bool = False
    is_flipped: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return (self.width, self.height) if self.quarter_turns % 2 else (self.height, self.width)

    def pixels(self, picture: Picture) -> NDArray[Any]:
        """Return the window of a decoded picture, [h, w, C] in its own type, contiguous."""
        reduced_height, reduced_width = picture.pixels.shape[:2]
        r = picture.reduction
        left, top = min(self.left // r, reduced_width - 1), min(self.top // r, reduced_height - 1)
        right, bottom = max(-(-self.right // r), left + 1), max(-(-self.bottom // r), top + 1)
        window = _resize(picture.pixels[top:bottom, left:right], self.width, self.height)
        # a copy: a side of one pixel counts as contiguous even where it is mirrored, which torch does not take
        return np.array(self._turn(window), order="C")

    def points(self, points: FloatArray) -> FloatArray:
        """Map image coordinates to coordinates of the output. points: [P, 2] x, y."""
        scale = (self.width / (self.right - self.left), self.height / (self.bottom - self.top))
        points = (points - (self.left, self.top)) * scale
        width, height = self.width, self.height
        for _ in range(self.quarter_turns):
            points = np.stack([points[:, 1], width - points[:, 0]], 1)
            width, height = height, width
        if self.is_mirrored:
            points = np.stack([width - points[:, 0], points[:, 1]], 1)
        if self.is_flipped:
            points = np.stack([points[:, 0], height - points[:, 1]], 1)
        return points

    def masks(self, segmentations: Sequence[Segmentation]) -> NDArray[np.uint8]:
        """Return dense masks of the output, [T, h, w] uint8 of 0 and 1; a mask outside the window is empty."""
        out = np.zeros((len(segmentations), *self.size), np.uint8)
        for mask, segmentation in zip(out, segmentations, strict=True):
            if isinstance(segmentation, Polygons):
                height, width = self.size
                rasterize([self.points(part) for part in segmentation.parts], height, width, mask)
            else:
                self._draw_rle(segmentation, mask)
        return out

    def _draw_rle(self, rle: Rle, out: NDArray[np.uint8]) -> None:
        left, right = max(rle.columns[0], self.left), min(rle.columns[1], self.right)
        if left >= right:
            return
        columns = rle.crop(left, right)[self.top : self.bottom]
        window = np.zeros((self.bottom - self.top, self.right - self.left), np.uint8)
        window[:, left - self.left : right - self.left] = columns * 255
        out[:] = self._turn(_resize(window, self.width, self.height)) >= 128

    def _turn(self, window: NDArray[Any]) -> NDArray[Any]:
        window = np.rot90(window, self.quarter_turns)
        if self.is_mirrored:
            window = window[:, ::-1]
        if self.is_flipped:
            window = window[::-1]
        return window


def _resize(window: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    if window.shape[:2] == (height, width):
        return window
    is_small = height < AREA_BELOW * window.shape[0] or width < AREA_BELOW * window.shape[1]
    method = cv2.INTER_AREA if is_small else cv2.INTER_LINEAR
    if window.ndim == 3 and window.shape[2] > _RESIZED_AT_ONCE:
        groups = [window[:, :, i : i + _RESIZED_AT_ONCE] for i in range(0, window.shape[2], _RESIZED_AT_ONCE)]
        return np.concatenate([_resize(np.ascontiguousarray(group), width, height) for group in groups], 2)
    resized: NDArray[Any] = np.asarray(cv2.resize(window, (width, height), interpolation=method), window.dtype)
    # OpenCV leaves out a single channel
    return resized[:, :, None] if resized.ndim < window.ndim else resized


def boxes_of(masks: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the boxes of dense masks [T, h, w]: [T, 4] xyxy in pixels, all zero for an empty mask."""
    boxes = np.zeros((len(masks), 4), np.int64)
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask)
        if width > 0:
            box[:] = x, y, x + width, y + height
    return boxes


def fit(height: int, width: int, image_size: int) -> View:
    """Return the view of the whole image with its longer side resized to `image_size`; no side falls below 1 pixel."""
    scale = image_size / max(height, width)
    return View(0, 0, width, height, max(round(width * scale), 1), max(round(height * scale), 1))


def jitter(height: int, width: int, image_size: int, scale: float, x: float, y: float, tile: int | None = None) -> View:
    """Return the view of the image at `scale` times its fitted size; a crop where that exceeds `image_size`.

    x, y: position of the crop in 0..1 of the range that it can move in
    tile: pixels of the image that fit to `image_size`; None: those of its longer side
    """
    zoom = scale * image_size / (tile or max(height, width))
    window_width = min(width, max(round(image_size / zoom), 1))
    window_height = min(height, max(round(image_size / zoom), 1))
    left, top = round(x * (width - window_width)), round(y * (height - window_height))
    out_width = min(max(round(window_width * zoom), 1), image_size)
    out_height = min(max(round(window_height * zoom), 1), image_size)
    return View(left, top, left + window_width, top + window_height, out_width, out_height)
