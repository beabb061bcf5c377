"""Outlines of the synthetic shapes, as closed polygons in a unit frame.

A shape is one or more polygons [P, 2] float32 (x right, y down) in the square -1..1, filled by the even-odd rule: a
second polygon inside the first is a hole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Contours = tuple[Points, ...]


def _circle(num_points: int = 40) -> Points:
    angle = np.linspace(0, 2 * np.pi, num_points, endpoint=False, dtype=np.float32)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _polygon(xs: list[float], ys: list[float]) -> Points:
    return np.stack([np.array(xs, np.float32), np.array(ys, np.float32)], axis=1)


def _polar(radius: NDArray[np.float32]) -> Points:
    """Return points at evenly spaced angles with the given radii, scaled to a largest radius of 1."""
    return np.asarray(_circle(len(radius)) * (radius / radius.max())[:, None], np.float32)


def _scaled(points: Points, width: float, height: float) -> Points:
    return points * np.array([width, height], np.float32)


def _disk(rng: np.random.Generator) -> Contours:
    return (_circle(),)


def _ellipse(rng: np.random.Generator) -> Contours:
    return (_scaled(_circle(), 1.0, rng.uniform(0.4, 0.8)),)


def _box(width: float, height: float) -> Points:
    return _polygon([-width, width, width, -width], [-height, -height, height, height])


def _square(rng: np.random.Generator) -> Contours:
    return (_box(0.9, 0.9 * rng.uniform(0.93, 1.07)),)


def _rectangle(rng: np.random.Generator) -> Contours:
    return (_box(1.0, rng.uniform(0.25, 0.75)),)


def _triangle(rng: np.random.Generator) -> Contours:
    apex = rng.uniform(-0.4, 0.4)
    return (_polygon([-0.9, 0.9, apex], [0.7, 0.7, -rng.uniform(0.6, 1.0)]),)


def _hexagon(rng: np.random.Generator) -> Contours:
    return (_circle(6),)


def _star(rng: np.random.Generator) -> Contours:
    radius = np.ones(2 * int(rng.integers(5, 8)), np.float32)
    radius[1::2] = rng.uniform(0.38, 0.55)
    return (_polar(radius),)


def _ring(rng: np.random.Generator) -> Contours:
    outer = _scaled(_circle(), 1.0, rng.uniform(0.75, 1.0))
    return (outer, outer * np.float32(rng.uniform(0.4, 0.7)))


def _cross(rng: np.random.Generator) -> Contours:
    a = rng.uniform(0.2, 0.38)
    xs = [-a, a, a, 1, 1, a, a, -a, -a, -1, -1, -a]
    ys = [-1, -1, -a, -a, a, a, 1, 1, a, a, -a, -a]
    return (_polygon(xs, ys),)


def _crescent(rng: np.random.Generator) -> Contours:
    angle = np.linspace(-2.2, 2.2, 28, dtype=np.float32)
    outer = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    depth = np.float32(rng.uniform(0.1, 0.4))
    inner = outer[::-1].copy()
    inner[:, 0] = outer[0, 0] + (inner[:, 0] - outer[0, 0]) * depth
    inner[:, 1] *= np.float32(0.85)
    points = np.concatenate([outer, inner])
    return (points - (points.max(axis=0) + points.min(axis=0)) / 2,)


def _blob(rng: np.random.Generator) -> Contours:
    order = np.arange(2, 7, dtype=np.float32)[:, None]
    amplitude = (rng.normal(0, 0.3, 5).astype(np.float32) / order[:, 0]) * np.float32(rng.uniform(0.5, 1.4))
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False, dtype=np.float32)[None]
    waves = np.cos(order * angle + rng.uniform(0, 2 * np.pi, (5, 1)).astype(np.float32))
    return (_polar(np.clip(1 + amplitude @ waves, 0.3, None)),)


def _bent_bar(radius: float, bend: float) -> Points:
    """Return a bar of half width `radius` along a parabola that rises by twice `bend`."""
    x = np.linspace(-1, 1, 20)
    slope = 4 * bend * x
    normal = np.stack([-slope, np.ones_like(x)], axis=1) / np.sqrt(1 + slope**2)[:, None]
    spine = np.stack([x, 2 * bend * x**2 - bend], axis=1)
    width = radius * np.sqrt(np.clip(1 - np.abs(x) ** 8, 0, 1))[:, None]
    points = np.concatenate([spine + width * normal, (spine - width * normal)[::-1]])
    return np.asarray(points / np.abs(points).max(), np.float32)


def _capsule(rng: np.random.Generator) -> Contours:
    radius = rng.uniform(0.15, 0.4)
    points = _circle() * np.float32(radius)
    points[:, 0] += np.where(points[:, 0] >= 0, 1 - radius, radius - 1).astype(np.float32)
    if rng.random() < 0.3:
        return (_bent_bar(radius, rng.uniform(0.15, 0.7)),)
    return (points,)


def _leaf(rng: np.random.Generator) -> Contours:
    t = np.linspace(0, 1, 24, dtype=np.float32)
    half = np.sin(np.pi * t**0.8) * rng.uniform(0.35, 0.55)
    bend = rng.uniform(-0.3, 0.3) * np.sin(np.pi * t)
    x = 2 * t - 1
    top, bottom = np.stack([x, bend - half], axis=1), np.stack([x, bend + half], axis=1)
    return (np.concatenate([top, bottom[::-1][1:-1]]).astype(np.float32),)


def _gear(rng: np.random.Generator) -> Contours:
    teeth = int(rng.integers(7, 11))
    radius = np.tile(np.array([1, 1, 0.74, 0.74], np.float32), teeth)
    return (_polar(radius), _circle(24) * np.float32(rng.uniform(0.22, 0.36)))


def _heart(rng: np.random.Generator) -> Contours:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False, dtype=np.float32)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return (np.stack([x / 17, (y - 2.5) / 17 * rng.uniform(0.9, 1.1)], axis=1).astype(np.float32),)


def _arrow(rng: np.random.Generator) -> Contours:
    shaft, neck = rng.uniform(0.16, 0.28), rng.uniform(-0.1, 0.25)
    xs = [-1, neck, neck, 1, neck, neck, -1]
    ys = [-shaft, -shaft, -0.7, 0, 0.7, shaft, shaft]
    return (_polygon(xs, ys),)


BROAD_SHAPES: dict[str, Callable[[np.random.Generator], Contours]] = {
    "disk": _disk,
    "ellipse": _ellipse,
    "square": _square,
    "rectangle": _rectangle,
    "triangle": _triangle,
    "hexagon": _hexagon,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "blob": _blob,
    "capsule": _capsule,
}

SHAPE_NAMES = tuple(BROAD_SHAPES)

TARGET_SHAPES: dict[str, Callable[[np.random.Generator], Contours]] = {
    "leaf": _leaf,
    "gear": _gear,
    "heart": _heart,
    "arrow": _arrow,
}


def shape_label(name: str) -> int:
    """Return the index of a broad shape in `SHAPE_NAMES`."""
    return SHAPE_NAMES.index(name)


def placed(contours: Contours, centre: tuple[float, float], radius: float, angle: float) -> Contours:
    """Rotate unit contours by `angle` (radians), scale them by `radius` and move them to `centre` (x, y), in pixels."""
    c, s = radius * np.cos(angle), radius * np.sin(angle)
    turn = np.array([[c, s], [-s, c]], np.float32)
    shift = np.array(centre, np.float32)
    return tuple(points @ turn + shift for points in contours)
