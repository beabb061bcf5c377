"""Shared parts of the broad domain's scenes: backgrounds, clutter and placement of objects."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.synthetic.canvas import Canvas, Material
from vispeft.synthetic.contours import BROAD_SHAPES, placed
from vispeft.synthetic.textures import NATURAL, REGULAR, Image, blend, colour, near, smooth_field, texture


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number from the log-uniform distribution between low and high."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def ground(rng: np.random.Generator, height: int, width: int, base: Image, spread: float) -> Image:
    """Return a textured background [height, width, 3] around a base colour, sometimes of two parts."""
    image = _surface(rng, height, width, base, spread)
    if rng.random() < 0.15:
        other = _surface(rng, height, width, near(rng, base, 0.2), spread)
        tilt = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(rng.normal(0, 0.5))
        level = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(rng.uniform(-0.7, 0.7))
        image = np.where((tilt + level > 0)[:, :, None], other, image)
    if rng.random() < 0.5:
        image = image * (1 + np.float32(rng.uniform(0.1, 0.8)) * (smooth_field(rng, height, width)[:, :, None] - 0.5))
    return np.ascontiguousarray(image, np.float32)


def _surface(rng: np.random.Generator, height: int, width: int, base: Image, spread: float) -> Image:
    families = NATURAL if rng.random() < 0.8 else REGULAR
    image = blend(texture(rng, height, width, families), near(rng, base, spread), near(rng, base, spread))
    if rng.random() < 0.5:
        grain = texture(rng, height, width, ("grain", "relief", "fibre")) - np.float32(0.5)
        image += (np.float32(rng.uniform(0, 0.5) * base.mean()) * grain)[:, :, None]
    return image


def clutter(rng: np.random.Generator, canvas: Canvas, amount: int) -> None:
    """Draw up to `amount` lines, letters and arcs that are not instances."""
    side = canvas.side
    for _ in range(int(rng.integers(amount + 1))):
        tint = colour(rng)
        line = [float(v) for v in tint]
        weight = int(rng.integers(1, 3))
        points = rng.uniform(0, side, (int(rng.integers(2, 6)), 2))
        match int(rng.integers(3)):
            case 0:
                path = [(points * 16).astype(np.int32)]
                cv2.polylines(canvas.image, path, False, line, weight, cv2.LINE_AA, 4)
            case 1:
                letters = "".join(chr(c) for c in rng.integers(48, 123, rng.integers(2, 9)))
                canvas.write(letters, (points[0, 0], points[0, 1]), side / 192 * rng.uniform(0.25, 0.9), tint)
            case _:
                axes = (int(rng.uniform(0.1, 0.6) * side), int(rng.uniform(0.1, 0.6) * side))
                centre = (int(points[0, 0]), int(points[0, 1]))
                turn, start, sweep = rng.uniform(0, 360), rng.uniform(0, 360), rng.uniform(20, 160)
                cv2.ellipse(canvas.image, centre, axes, turn, start, start + sweep, line, weight, cv2.LINE_AA)


def bushes(rng: np.random.Generator, canvas: Canvas, amount: int) -> None:
    """Draw up to `amount` ragged bodies that occlude instances, mostly near the lower edge. They are not instances."""
    for _ in range(int(rng.integers(amount + 1))):
        size = rng.uniform(0.08, 0.3) * canvas.side
        centre = (rng.uniform(0, canvas.width), canvas.height * rng.uniform(0.5, 1.1))
        tint = colour(rng, (0, 0.7), (0.1, 0.6))
        material = Material(tint * np.float32(0.5), near(rng, tint, 0.15), ("grain", "spots", "relief"))
        contours = placed(BROAD_SHAPES["blob"](rng), centre, size, rng.uniform(0, 6.3))
        canvas.add(rng, contours, None, material)
        shape = canvas.stencil(contours)
        if shape is not None:
            canvas.ids[shape.window][shape.alpha > 127] = 0


def spread_points(rng: np.random.Generator, count: int, height: int, width: int, gap: float) -> NDArray[np.float64]:
    """Draw up to `count` points (x, y) in pixels, [P, 2], uniform in the image and at least `gap` pixels apart."""
    candidates = rng.uniform(0, 1, (3 * count, 2)) * (width, height)
    apart = ((candidates[:, None] - candidates[None]) ** 2).sum(axis=2) >= gap * gap
    kept: list[int] = []
    for i in range(len(candidates)):
        if len(kept) < count and (not kept or bool(apart[i, kept].all())):
            kept.append(i)
    return candidates[kept]
