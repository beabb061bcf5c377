"""Transforms of an image and its annotations to a network input: fitted for evaluation, jittered for training.

Geometry is done on polygons and run lengths, exactly and only where it is seen; albumentations changes colours, and
whatever else of its own a caller asks for.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vispeft.coco.sets import Annotation
from vispeft.data.reading.images import Picture
from vispeft.data.transforms.geometry import View, boxes_of, fit, jitter
from vispeft.errors import ConfigError

TRIES = 5
"""Windows that are drawn at most to find one that shows an instance."""


@dataclass(frozen=True)
class Example:
    """A network input before padding.

    image: [3, h, w] uint8 RGB
    labels: [T] int64; boxes_xyxy: [T, 4] float32 in pixels of `image`, around the masks; masks: [T, h, w] bool
    """

    image: Tensor
    labels: Tensor
    boxes_xyxy: Tensor
    masks: Tensor


class Transform(Protocol):
    """Makes network inputs of one size. longest_needed: pixels of the longer side beyond which more gain nothing."""

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


class TrainTransform:
    """Large-scale jitter with a random window (Ghiasi et al. 2021), flips, quarter turns, colour jitter.

    scale: range of the jitter; 1 fits the longer side to `image_size`, more cuts a window, less leaves padding
    flip, vertical_flip, quarter_turn: probabilities
    colour: strength of the jitter of brightness, contrast and saturation, in 0..1; hue moves an eighth of it; 0: none
    min_pixels: instances with fewer visible pixels at network size are dropped
    extra: more albumentations transforms, by name with their options, applied to the image and its masks alike
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
        self.longest_needed = round(image_size * max(scale[1], 1.0))
        self.scale = (float(scale[0]), float(scale[1]))
        self.flip, self.vertical_flip, self.quarter_turn = flip, vertical_flip, quarter_turn
        self.min_pixels = min_pixels
        self._colour = _pipeline(_colour_jitter(colour))
        self._extra = _pipeline(extra)

    def __call__(
        self, picture: Picture, annotations: Sequence[Annotation], height: int, width: int, rng: np.random.Generator
    ) -> Example:
        view = self._draw(annotations, height, width, rng)
        seed = int(rng.integers(2**31))
        for pipeline in (self._colour, self._extra):
            if pipeline is not None:
                pipeline.set_random_seed(seed)
        return _example(view, picture, annotations, self.min_pixels, self._colour, self._extra)

    def _draw(self, annotations: Sequence[Annotation], height: int, width: int, rng: np.random.Generator) -> View:
        scale = float(rng.uniform(*self.scale))
        for _ in range(TRIES):
            view = jitter(height, width, self.image_size, scale, float(rng.random()), float(rng.random()))
            if not annotations or any(_is_seen(view, annotation) for annotation in annotations):
                break
        turned, mirrored, flipped = rng.random(3) < (self.quarter_turn, self.flip, self.vertical_flip)
        turns = int(rng.integers(1, 4)) if turned else 0
        return View(
            view.left, view.top, view.right, view.bottom, view.width, view.height, turns, bool(mirrored), bool(flipped)
        )


def _checked_size(image_size: int) -> int:
    if image_size < 1:
        raise ConfigError(f"`image_size` must be at least 1, but is {image_size}.")
    return image_size


def _is_seen(view: View, annotation: Annotation) -> bool:
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
        image, masks = _with_masks(extra, image, masks)
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


def _with_masks(
    pipeline: Any, image: NDArray[np.uint8], masks: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        done = pipeline(image=image, masks=masks) if len(masks) else pipeline(image=image)
    # albumentations raises what it likes where a transform does not suit an image
    except Exception as error:
        height, width = image.shape[:2]
        raise ConfigError(
            f"`extra` transforms must take any image, but fail on one of {width}x{height}: {error}."
        ) from (error)
    image = done["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ConfigError("`extra` transforms must give RGB images of 8 bits; normalisation is done later.")
    if len(masks) == 0:
        return image, np.zeros((0, *image.shape[:2]), np.uint8)
    return image, np.array(np.asarray(done["masks"]) != 0, order="C").view(np.uint8)


def _colour_jitter(strength: float) -> list[tuple[str, Mapping[str, Any]]]:
    if strength == 0:
        return []
    factor, hue = (1 - strength, 1 + strength), strength / 8
    options = {"brightness": factor, "contrast": factor, "saturation": factor, "hue": (-hue, hue), "p": 0.8}
    return [("ColorJitter", options)]


def _pipeline(transforms: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """An albumentations pipeline, or None for none. `Any`: the library's classes exist only once it is imported."""
    if not transforms:
        return None
    # read on import: albumentations would look for a newer version over the network
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    known = {
        name: kind
        for name, kind in vars(albumentations).items()
        if isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform)
    }
    built = []
    for name, options in transforms:
        if name not in known:
            nearest = ", ".join(f"`{match}`" for match in get_close_matches(name, known, 3)) or "see its documentation"
            raise ConfigError(f"albumentations has no transform `{name}`; the nearest are {nearest}.")
        try:
            # it warns of options that it does not know, and goes on without them
            with warnings.catch_warnings(action="error"):
                built.append(known[name](**options))
        except (TypeError, ValueError, UserWarning) as error:
            raise ConfigError(f"albumentations' `{name}` does not take {dict(options)}: {error}") from error
    return albumentations.Compose(built)
