"""Transforms of an image and its annotations to a network input, for evaluation and for training.

The geometry is applied to polygons and run lengths, exactly and only within the window; albumentations changes the
colours and applies the extra transforms that a caller names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from vispeft.coco.sets import Annotation
from vispeft.data.reading.images import Picture
from vispeft.data.transforms.albumentations_pipeline import apply_with_masks, build_pipeline, colour_jitter
from vispeft.data.transforms.brightness import BrightnessContrast
from vispeft.data.transforms.geometry import View, boxes_of, fit, jitter
from vispeft.data.transforms.tiles import Tile, Tiling, inside, tile_view
from vispeft.errors import ConfigError

WHOLE = 2**31
"""Longer side, in pixels, that no image exceeds: images are decoded at their own size."""
TRIES = 5
"""Largest number of windows that are drawn to find one with an instance."""


@dataclass(frozen=True)
class Example:
    """A network input before padding.

    image: [C, h, w] uint8, RGB for three, or float32 in 0..255
    labels: [T] int64; boxes_xyxy: [T, 4] float32 in pixels of `image`, around the masks; masks: [T, h, w] bool
    """

    image: Tensor
    labels: Tensor
    boxes_xyxy: Tensor
    masks: Tensor


class Transform(Protocol):
    """Transform to network inputs of one size. longest_needed: largest useful length of the longer side in pixels."""

    image_size: int
    longest_needed: int

    def __call__(
        self, picture: Picture, annotations: Sequence[Annotation], height: int, width: int, rng: np.random.Generator
    ) -> Example: ...


class EvalTransform:
    """The whole image, its longer side at `image_size`. Uses no randomness."""

    def __init__(self, image_size: int) -> None:
        self.image_size = _checked_size(image_size)
        self.longest_needed = image_size

    def __call__(
        self, picture: Picture, annotations: Sequence[Annotation], height: int, width: int, rng: np.random.Generator
    ) -> Example:
        return _example(fit(height, width, self.image_size), picture, annotations, min_pixels=1)


class TileTransform:
    """One tile of an image, a whole tile at `image_size`. Uses no randomness."""

    def __init__(self, image_size: int, tiling: Tiling) -> None:
        self.image_size = _checked_size(image_size)
        self.tiling = tiling
        self.longest_needed = WHOLE

    def __call__(self, picture: Picture, annotations: Sequence[Annotation], tile: Tile) -> Example:
        """Return the tile with the annotations that reach into it."""
        view = tile_view(tile, self.tiling, self.image_size)
        return _example(view, picture, inside(annotations, view), min_pixels=1)


class TrainTransform:
    """Large-scale jitter with a random window (Ghiasi et al. 2021), flips, quarter turns, colour jitter.

    scale: range of the jitter; 1 fits the longer side to `image_size`, more cuts a window, less leaves padding
    flip, vertical_flip, quarter_turn: probabilities
    colour: strength of the jitter of brightness, contrast and saturation, in 0..1; hue moves an eighth of it; 0: none.
        Images of other channels than RGB have no saturation and no hue
    min_pixels: instances with fewer visible pixels at network size are dropped
    extra: more albumentations transforms, by name with their options, applied to the image and its masks alike
    tile: side of the windows that 1 of `scale` fits to `image_size`, in pixels of the image; None: the whole image
    """

    def __init__(
        self,
        image_size: int,
        *,
        scale: tuple[float, float] = (0.5, 1.5),
        flip: float = 0.5,
        vertical_flip: float = 0.0,
        quarter_turn: float = 0.0,
        colour: float = 0.3,
        min_pixels: int = 4,
        extra: Sequence[tuple[str, Mapping[str, Any]]] = (),
        tile: int | None = None,
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ConfigError(f"`scale` must be two numbers above 0, the smaller first, but is {scale}.")
        for name, value in (
            ("flip", flip),
            ("vertical_flip", vertical_flip),
            ("quarter_turn", quarter_turn),
            ("colour", colour),
        ):
            if not 0 <= value <= 1:
                raise ConfigError(f"`{name}` must lie in 0..1, but is {value}.")
        self.image_size = _checked_size(image_size)
        self.longest_needed = round(image_size * max(scale[1], 1.0)) if tile is None else WHOLE
        self.tile = tile
        self.scale = (float(scale[0]), float(scale[1]))
        self.flip, self.vertical_flip, self.quarter_turn = flip, vertical_flip, quarter_turn
        self.min_pixels = min_pixels
        self.colour = colour
        self._colour = build_pipeline(colour_jitter(colour))
        self._extra = build_pipeline(extra)

    def __call__(
        self, picture: Picture, annotations: Sequence[Annotation], height: int, width: int, rng: np.random.Generator
    ) -> Example:
        view = self._draw(annotations, height, width, rng)
        seed = int(rng.integers(2**31))
        for pipeline in (self._colour, self._extra):
            if pipeline is not None:
                pipeline.set_random_seed(seed)
        if self.tile is not None:
            annotations = inside(annotations, view)
        if picture.pixels.shape[2] == 3:
            return _example(view, picture, annotations, self.min_pixels, self._colour, self._extra)
        jittered = BrightnessContrast(self.colour, np.random.default_rng(seed)) if self.colour else None
        return _example(view, picture, annotations, self.min_pixels, jittered, self._extra)

    def _draw(self, annotations: Sequence[Annotation], height: int, width: int, rng: np.random.Generator) -> View:
        scale = float(rng.uniform(*self.scale))
        for _ in range(TRIES):
            place = float(rng.random()), float(rng.random())
            view = jitter(height, width, self.image_size, scale, *place, self.tile)
            if not annotations or any(_is_centre_inside(view, annotation) for annotation in annotations):
                break
        else:
            if self.tile is not None:
                # windows of a large image with few objects are nearly all empty
                view = _around(annotations[int(rng.integers(len(annotations)))], view, height, width, rng)
        turned, mirrored, flipped = rng.random(3) < (self.quarter_turn, self.flip, self.vertical_flip)
        turns = int(rng.integers(1, 4)) if turned else 0
        return View(
            view.left, view.top, view.right, view.bottom, view.width, view.height, turns, bool(mirrored), bool(flipped)
        )


def _checked_size(image_size: int) -> int:
    if image_size < 1:
        raise ConfigError(f"`image_size` must be at least 1, but is {image_size}.")
    return image_size


def _around(annotation: Annotation, view: View, height: int, width: int, rng: np.random.Generator) -> View:
    """Return a view of the same size with the centre of an instance at a random place in it."""
    (low_x, low_y), (high_x, high_y) = annotation.segmentation.extent
    view_width, view_height = view.right - view.left, view.bottom - view.top
    left = int(np.clip((low_x + high_x) / 2 - rng.random() * view_width, 0, width - view_width))
    top = int(np.clip((low_y + high_y) / 2 - rng.random() * view_height, 0, height - view_height))
    return View(left, top, left + view_width, top + view_height, view.width, view.height)


def _is_centre_inside(view: View, annotation: Annotation) -> bool:
    x, y = annotation.bbox[0] + annotation.bbox[2] / 2, annotation.bbox[1] + annotation.bbox[3] / 2
    return view.left <= x < view.right and view.top <= y < view.bottom


def _example(
    view: View,
    picture: Picture,
    annotations: Sequence[Annotation],
    min_pixels: int,
    colour: Any = None,
    extra: Any = None,
) -> Example:
    image = view.pixels(picture)
    masks = view.masks([annotation.segmentation for annotation in annotations])
    if colour is not None:
        image = colour(image=image)["image"]
    if extra is not None:
        image, masks = apply_with_masks(extra, image, masks)
    labels = np.array([annotation.category_idx for annotation in annotations], np.int64)
    boxes = boxes_of(masks)
    kept = np.array([cv2.countNonZero(mask) >= min_pixels for mask in masks], bool)
    if not kept.all():
        labels, boxes, masks = labels[kept], boxes[kept], masks[kept]
    return Example(
        torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C")),
        torch.from_numpy(labels),
        torch.from_numpy(boxes.astype(np.float32)),
        torch.from_numpy(masks.view(bool)),
    )
