"""Scenes of tissue: cells divided by membranes, and organelles inside cells."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.synthetic.canvas import Canvas, Material
from vispeft.synthetic.contours import BROAD_SHAPES, placed, shape_label
from vispeft.synthetic.ground import log_uniform, spread_points
from vispeft.synthetic.textures import colour, near, texture

BODIES = ("ellipse", "ellipse", "capsule", "blob", "disk")
MAX_REGIONS = 250


def _regions(rng: np.random.Generator, height: int, width: int, count: int) -> NDArray[np.uint8]:
    """Return a partition [H, W] of the image into about `count` cells with wavy borders, numbered from 1."""
    pitch = float(np.sqrt(height * width / count))
    seeds = np.full((height, width), 255, np.uint8)
    points = spread_points(rng, min(count, MAX_REGIONS), height, width, 0.6 * pitch).astype(int)
    seeds[np.minimum(points[:, 1], height - 1), np.minimum(points[:, 0], width - 1)] = 0
    _, owner = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = np.float32(rng.uniform(0.2, 1.4) * pitch)
    softness = max(0.06 * pitch, 1.0)
    for axis in (x, y):
        axis += waves * (cv2.GaussianBlur(texture(rng, height, width, ("cloud",)), (0, 0), softness) - np.float32(0.5))
    moved = cv2.remap(owner.astype(np.uint8), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(moved, np.uint8)


def _partition(rng: np.random.Generator, height: int, width: int, count: int) -> tuple[Canvas, NDArray[np.bool_]]:
    """Draw cells divided by membranes, without instances. Return the canvas and the mask of the membranes [H, W]."""
    cells = _regions(rng, height, width, count)
    thickness = 2 * int(rng.integers(1, 3)) + 1
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness, thickness))
    wall = np.asarray(cv2.dilate(cells, element) != cv2.erode(cells, element), np.bool_)
    tint = colour(rng, (0, 0 if rng.random() < 0.6 else 0.7), (0.4, 0.9))
    spread = rng.uniform(0.0, 0.12)
    tints = np.stack([near(rng, tint, spread) for _ in range(MAX_REGIONS + 1)])
    families = ("cloud", "grain", "grain", "spots", "cells", "dots")
    grain = texture(rng, height, width, families) - np.float32(0.5)
    image = tints[cells] + np.float32(rng.uniform(0.05, 0.35)) * grain[:, :, None]
    membrane = tint * np.float32(rng.uniform(0.1, 0.7) if rng.random() < 0.8 else rng.uniform(1.2, 1.8))
    soft = cv2.GaussianBlur(wall.astype(np.float32), (0, 0), rng.uniform(0.5, 1.3))
    gaps = 1 - np.float32(rng.uniform(0, 0.6)) * texture(rng, height, width)
    strength = np.float32(rng.uniform(0.4, 1)) * soft * gaps
    image += strength[:, :, None] * (membrane - image)
    return Canvas(np.ascontiguousarray(image, np.float32)), wall


def draw_tissue(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw cells that fill the image. Either all cells are instances, or only those of a different appearance."""
    canvas, wall = _partition(rng, height, width, round(log_uniform(rng, 6, 60)))
    count, number, stats, _ = cv2.connectedComponentsWithStats((~wall).astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= 20
    keep[0] = False
    if rng.random() < 0.4:
        keep &= rng.random(count) < rng.uniform(0.3, 0.9)
        others = np.where(keep[number], np.float32(1), np.float32(rng.uniform(0.4, 0.75)))
        canvas.image *= cv2.GaussianBlur(others, (0, 0), 0.7)[:, :, None]
    order = np.zeros(count, np.int16)
    order[keep] = np.arange(1, int(keep.sum()) + 1)
    canvas.ids = order[number]
    canvas.labels = [shape_label("blob")] * int(keep.sum())
    canvas.full_areas = [int(area) for area in stats[keep, cv2.CC_STAT_AREA]]
    return canvas


def draw_organelles(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw textured bodies inside cells. The cell walls look similar to the outlines of the bodies."""
    canvas, _ = _partition(rng, height, width, round(log_uniform(rng, 4, 30)))
    side = canvas.side
    inside = np.asarray(canvas.image.mean(axis=(0, 1)), np.float32)
    is_similar = rng.random() < 0.8
    body = inside * np.float32(rng.uniform(0.45, 0.9)) if is_similar else near(rng, inside, 0.25)
    radius = log_uniform(rng, 0.03, 0.13) * side
    count = round(min(log_uniform(rng, 2, 30), 0.2 * side**2 / radius**2))
    rim = body * np.float32(rng.uniform(0.3, 0.8)) if rng.random() < 0.8 else None
    for x, y in spread_points(rng, count, height, width, 1.8 * radius):
        name = str(rng.choice(BODIES))
        tint = near(rng, body, 0.03)
        inner = ("stripes", "grain", "fibre", "spots")
        material = Material(tint, near(rng, tint, 0.12), inner, rim=rim, rim_width=rng.uniform(1, 3))
        size = max(radius * float(np.exp(rng.normal(0, 0.25))), 2.5)
        contours = placed(BROAD_SHAPES[name](rng), (x, y), size, rng.uniform(0, 2 * np.pi))
        canvas.add(rng, contours, shape_label(name), material)
    return canvas
