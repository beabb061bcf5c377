"""Rendering of one scene of a domain: image, masks and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.errors import DataError
from vispeft.synthetic.broad import draw_broad
from vispeft.synthetic.camera import photograph
from vispeft.synthetic.canvas import Canvas
from vispeft.synthetic.contours import SHAPE_NAMES
from vispeft.synthetic.targets import TARGET_NAMES, TARGETS, scanned
from vispeft.synthetic.textures import Image


@dataclass(frozen=True)
class Scene:
    """One image and its instances.

    image: [H, W, 3] uint8 RGB
    masks: [T, H, W] bool, the visible part of each instance; no pixel belongs to two
    labels: [T] int64, indices into the domain's class names
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Domain:
    """A family of synthetic images: its class names, the function that draws a scene, and its camera effects."""

    class_names: tuple[str, ...]
    draw: Callable[[np.random.Generator, int, int], Canvas]
    finish: Callable[[np.random.Generator, Image], NDArray[np.uint8]]


DOMAINS: dict[str, Domain] = {
    "broad": Domain(SHAPE_NAMES, draw_broad, photograph),
    "hatched": Domain(TARGET_NAMES, TARGETS["hatched"], scanned),
    "neon": Domain(TARGET_NAMES, TARGETS["neon"], scanned),
    "camouflage": Domain(TARGET_NAMES, TARGETS["camouflage"], scanned),
    "dotted": Domain(TARGET_NAMES, TARGETS["dotted"], scanned),
    "inverted": Domain(TARGET_NAMES, TARGETS["inverted"], scanned),
    "night": Domain(TARGET_NAMES, TARGETS["night"], scanned),
}

MIN_VISIBLE_PIXELS = 10
MIN_VISIBLE_PART = 0.12
MAX_TRIES = 20


def render_scene(rng: np.random.Generator, size: int | tuple[int, int], *, domain: str = "broad") -> Scene:
    """Draw a random scene of a domain, with at least one instance. size: side, or (height, width), in pixels.

    Instances with fewer than 10 visible pixels, or less than 12 % of their area visible, are dropped from the masks.
    The same generator state gives the same scene.
    """
    height, width = (size, size) if isinstance(size, int) else size
    chosen = find_domain(domain)
    if min(height, width) < 32:
        raise DataError(f"`size` must be at least 32 pixels a side, but is {height} x {width}.")
    for _ in range(MAX_TRIES):
        canvas = chosen.draw(rng, height, width)
        kept = _visible(canvas)
        if kept:
            masks = canvas.ids[None] == np.array(kept, np.int16)[:, None, None]
            labels = np.array([canvas.labels[k - 1] for k in kept], np.int64)
            return Scene(chosen.finish(rng, canvas.image), masks, labels)
    raise DataError(
        f"{MAX_TRIES} scenes of domain `{domain}` at {height} x {width} have no instance. Use a larger size."
    )


def find_domain(name: str) -> Domain:
    """Return the domain with this name. Raises `DataError` for an unknown name."""
    if name not in DOMAINS:
        raise DataError(f"`domain` must be one of {', '.join(DOMAINS)}, but is {name!r}.")
    return DOMAINS[name]


def _visible(canvas: Canvas) -> list[int]:
    """Return the numbers of the instances that are visible enough, in painting order."""
    counts = np.bincount(canvas.ids.ravel(), minlength=len(canvas.labels) + 1)
    return [
        k
        for k, full in enumerate(canvas.full_areas, start=1)
        if counts[k] >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_PART * full)
    ]
