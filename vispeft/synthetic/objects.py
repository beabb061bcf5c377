"""Scenes of separate objects: a few shaded objects, or many small grains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vispeft.synthetic.canvas import Canvas, Material
from vispeft.synthetic.contours import BROAD_SHAPES, SHAPE_NAMES, placed, shape_label
from vispeft.synthetic.ground import clutter, ground, log_uniform, spread_points
from vispeft.synthetic.textures import NATURAL, REGULAR, Image, colour, near

ROUND = ("disk", "ellipse", "blob", "capsule")


def _distinct(rng: np.random.Generator, tint: Image, ground_tint: Image) -> Image:
    """Return the colour, or a darker or lighter one if it is too close to the background."""
    if np.abs(tint - ground_tint).max() > 0.12:
        return tint
    step = rng.uniform(0.12, 0.35)
    return np.asarray(np.clip(tint + (step if ground_tint.mean() < 0.5 else -step), 0, 1), np.float32)


def _object_material(rng: np.random.Generator, base: Image) -> Material:
    spread = rng.uniform(0.02, 0.25)
    is_round = rng.random() < 0.6
    families = () if rng.random() < 0.15 else (NATURAL if rng.random() < 0.8 else REGULAR)
    return Material(
        low=near(rng, base, spread),
        high=near(rng, base, spread),
        families=families,
        dome=rng.uniform(0, 0.5) if is_round else 0.0,
        slope=rng.uniform(0, 0.5) if rng.random() < 0.6 else 0.0,
        gloss=rng.uniform(0.1, 0.7) if is_round and rng.random() < 0.5 else 0.0,
        bumps=rng.uniform(0.1, 0.8) if rng.random() < 0.35 else 0.0,
        rim=near(rng, base * np.float32(0.5), 0.1) if rng.random() < 0.2 else None,
        rim_width=rng.uniform(1, 3),
    )


def draw_objects(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw 1 to 16 objects, large or small, with shading and shadows, on a textured background."""
    table = colour(rng, (0, 0.7), (0.15, 1))
    canvas = Canvas(ground(rng, height, width, table, rng.uniform(0.02, 0.2)))
    if rng.random() < 0.4:
        clutter(rng, canvas, 6)
    side = canvas.side
    count = round(log_uniform(rng, 1, 16))
    gap = log_uniform(rng, 0.05, 1.1) * side / np.sqrt(count)
    family = SHAPE_NAMES if rng.random() < 0.6 else tuple(rng.choice(SHAPE_NAMES, 2))
    tints = [_distinct(rng, colour(rng), table) for _ in range(int(rng.integers(1, 6)))]
    largest = min(0.42, 0.6 / np.sqrt(count))
    smallest = 0.04 if rng.random() < 0.5 else 0.6 * largest
    shadow = rng.uniform(0.2, 0.8) if rng.random() < 0.5 else 0.0
    sun = (rng.uniform(-0.03, 0.03, 2) * side).astype(int)
    for x, y in spread_points(rng, count, height, width, gap):
        name = str(rng.choice(family))
        radius = log_uniform(rng, smallest, largest) * side
        contours = placed(BROAD_SHAPES[name](rng), (x, y), radius, rng.uniform(0, 2 * np.pi))
        shape = canvas.stencil(contours)
        if shadow and shape is not None:
            canvas.shade(shape, (int(sun[0]), int(sun[1])), max(0.02 * side, 1), shadow)
        tint = near(rng, tints[rng.integers(len(tints))], 0.05)
        canvas.add(rng, contours, shape_label(name), _object_material(rng, tint))
    return canvas


def _field_colours(rng: np.random.Generator) -> tuple[Image, Image]:
    """Return background and grain colours: like fluorescence, like a stain, grey, or arbitrary."""
    match int(rng.integers(6)):
        case 0 | 1:
            tint = colour(rng, (0, 1), (1, 1)) if rng.random() < 0.5 else np.ones(3, np.float32)
            return tint * np.float32(rng.uniform(0, 0.12)), tint * np.float32(log_uniform(rng, 0.2, 1))
        case 2:
            stain = rng.uniform((0.75, 0.5, 0.7), (0.97, 0.85, 0.95)).astype(np.float32)
            return stain, stain * rng.uniform((0.3, 0.2, 0.6), (0.8, 0.7, 0.95)).astype(np.float32)
        case 3:
            grey = np.full(3, rng.uniform(0.15, 0.95), np.float32)
            return grey, near(rng, grey * np.float32(rng.uniform(0.4, 0.85)), 0.02)
        case _:
            free = colour(rng, (0, 0.8))
            return free, _distinct(rng, colour(rng), free)


def _grain(rng: np.random.Generator, tint: Image, side: int) -> Material:
    return Material(
        low=tint,
        high=near(rng, tint, rng.uniform(0.02, 0.2)),
        dome=rng.uniform(-0.4, 0.5) if rng.random() < 0.6 else 0.0,
        bumps=rng.uniform(0.1, 0.6) if rng.random() < 0.2 else 0.0,
        rim=near(rng, tint * np.float32(rng.uniform(0.3, 1.5)), 0.05) if rng.random() < 0.3 else None,
        rim_width=1 + side / 400,
        opacity=rng.uniform(0.5, 1),
    )


def draw_field(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw many small grains of one kind, separate or touching, such as nuclei, pebbles or seeds."""
    base, tint = _field_colours(rng)
    canvas = Canvas(ground(rng, height, width, base, rng.uniform(0.005, 0.1)))
    side = canvas.side
    count = round(log_uniform(rng, 4, 110))
    radius = min(side * float(np.sqrt(rng.uniform(0.04, 0.65) / (count * np.pi))), 0.15 * side)
    radius = max(radius, 0.02 * side, 2.5)
    if rng.random() < 0.35:
        _veils(rng, canvas, near(rng, np.asarray((base + tint) / 2, np.float32), 0.05), radius)
    names = tuple(rng.choice(ROUND if rng.random() < 0.75 else SHAPE_NAMES, int(rng.integers(1, 3))))
    shared = _grain(rng, tint, side)
    spread, jitter = rng.uniform(0.01, 0.12), rng.uniform(0.05, 0.45)
    for x, y in spread_points(rng, count, height, width, radius * rng.uniform(0.7, 2)):
        name = str(rng.choice(names))
        shift = np.float32(rng.normal(0, spread))
        material = replace(shared, low=shared.low + shift, high=shared.high + shift)
        size = radius * float(np.exp(rng.normal(0, jitter)))
        contours = placed(BROAD_SHAPES[name](rng), (x, y), size, rng.uniform(0, 2 * np.pi))
        canvas.add(rng, contours, shape_label(name), material)
    return canvas


def _veils(rng: np.random.Generator, canvas: Canvas, tint: Image, radius: float) -> None:
    """Draw large translucent bodies, such as cytoplasm, that are not instances."""
    for _ in range(int(rng.integers(2, 12))):
        size = min(radius * rng.uniform(2.5, 6), 0.4 * canvas.side)
        centre = (rng.uniform(0, canvas.width), rng.uniform(0, canvas.height))
        rim = tint * np.float32(0.8) if rng.random() < 0.5 else None
        veil = Material(tint, near(rng, tint, 0.08), rim=rim, opacity=rng.uniform(0.2, 0.7))
        canvas.add(rng, placed(BROAD_SHAPES["blob"](rng), centre, size, rng.uniform(0, 2 * np.pi)), None, veil)
