"""Scenes of built structures: walls with windows, and circuit boards."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.synthetic.canvas import Canvas, Material
from vispeft.synthetic.contours import BROAD_SHAPES, Contours, placed, shape_label
from vispeft.synthetic.ground import bushes, clutter, ground, log_uniform, spread_points
from vispeft.synthetic.textures import NATURAL, REGULAR, Image, colour, near

Homography = NDArray[np.float32]
PARTS = ("rectangle", "rectangle", "square", "disk", "ring", "capsule", "cross", "hexagon")


def _view(rng: np.random.Generator, height: int, width: int, strength: float) -> Homography:
    """Return a random homography [3, 3] from the unit square to about the whole image."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    moved = (corners + rng.uniform(-strength, strength, (4, 2))) * (width, height)
    return np.asarray(cv2.getPerspectiveTransform(corners, moved.astype(np.float32)), np.float32)


def _project(points: list[tuple[float, float]], view: Homography) -> Contours:
    """Map a polygon of the unit square to pixels by a homography."""
    return (np.asarray(cv2.perspectiveTransform(np.array([points], np.float32), view)[0], np.float32),)


def _rect(left: float, top: float, right: float, bottom: float, view: Homography) -> Contours:
    return _project([(left, top), (right, top), (right, bottom), (left, bottom)], view)


def draw_grid(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw rows of windows on a wall in perspective, with sky above and bushes in front."""
    canvas = Canvas(ground(rng, height, width, colour(rng, (0, 0.6), (0.3, 1)), 0.1))
    view = _view(rng, height, width, rng.uniform(0, 0.25))
    wall = colour(rng, (0, 0.5), (0.2, 1))
    eaves = rng.uniform(-0.3, 0.3)
    surface = Material(wall, near(rng, wall, 0.1), NATURAL + REGULAR, slope=0.15)
    canvas.add(rng, _rect(-0.1, eaves, 1.1, 1.3, view), None, surface)
    _windows(rng, canvas, view, wall, max(eaves, 0.0))
    if rng.random() < 0.5:
        bushes(rng, canvas, 6)
    if rng.random() < 0.4:
        clutter(rng, canvas, 4)
    return canvas


def _windows(rng: np.random.Generator, canvas: Canvas, view: Homography, wall: Image, top: float) -> None:
    """Draw windows in rows and columns of the wall between `top` and 1; some are missing, some have another colour."""
    rows, columns = int(rng.integers(1, 7)), int(rng.integers(2, 8))
    u_step, v_step = 1 / columns, (1 - top) / rows
    half_u, half_v = 0.5 * u_step * rng.uniform(0.3, 0.85), 0.5 * v_step * rng.uniform(0.3, 0.85)
    glass, frame = colour(rng, (0, 0.6), (0.05, 0.9)), near(rng, wall, 0.25)
    skip, bars = rng.uniform(0, 0.4), (int(rng.integers(3)), int(rng.integers(3)))
    ledge = Material(near(rng, wall, 0.15), wall, ())
    for row in range(rows):
        v = top + (row + 0.5) * v_step
        if rng.random() < 0.3:
            canvas.add(rng, _rect(-0.1, v + 0.44 * v_step, 1.1, v + 0.5 * v_step, view), None, ledge)
        for column in range(columns):
            if rng.random() < skip:
                continue
            u = (column + 0.5) * u_step
            pane = near(rng, glass, 0.08) if rng.random() < 0.85 else colour(rng)
            high, slope = near(rng, pane, 0.2), rng.uniform(0, 0.4)
            material = Material(pane, high, slope=slope, rim=frame, rim_width=1 + canvas.side / 130)
            box = (u - half_u, v - half_v, u + half_u, v + half_v)
            canvas.add(rng, _rect(*box, view), shape_label("rectangle"), material)
            _bars(canvas, view, box, bars, frame)


def _bars(
    canvas: Canvas, view: Homography, box: tuple[float, float, float, float], bars: tuple[int, int], tint: Image
) -> None:
    """Draw vertical and horizontal bars across a window. bars: the number of each."""
    left, top, right, bottom = box
    for u in np.linspace(left, right, bars[0] + 2)[1:-1]:
        canvas.outline(_project([(u, top), (u, bottom)], view), tint, 1)
    for v in np.linspace(top, bottom, bars[1] + 2)[1:-1]:
        canvas.outline(_project([(left, v), (right, v)], view), tint, 1)


def _traces(rng: np.random.Generator, canvas: Canvas, base: Image) -> None:
    """Draw conductors as polylines along the axes and diagonals."""
    tint = [float(v) for v in near(rng, base * np.float32(rng.uniform(0.6, 1.5)), 0.05)]
    for _ in range(int(rng.integers(0, 30))):
        start = rng.uniform(0, 1, (1, 2)) * (canvas.width, canvas.height)
        lengths = rng.uniform(0.02, 0.3, (3, 1)) * canvas.side
        steps = np.cumsum(rng.choice([-1, 0, 1], (3, 2)) * lengths, axis=0)
        path = (np.concatenate([start, start + steps]) * 16).astype(np.int32)
        cv2.polylines(canvas.image, [path], False, tint, int(rng.integers(1, 4)), cv2.LINE_AA, 4)


def draw_board(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw chips, pads and capacitors, aligned with the axes, on a board with traces and printed text."""
    base = colour(rng, (0.4, 1), (0.15, 0.6)) if rng.random() < 0.7 else colour(rng)
    canvas = Canvas(ground(rng, height, width, base, 0.05))
    turn = rng.uniform(-0.2, 0.2) if rng.random() < 0.4 else 0.0
    _traces(rng, canvas, base)
    clutter(rng, canvas, 3)
    metal, plastic = colour(rng, (0, 0.5), (0.6, 1)), colour(rng, (0, 0.4), (0.05, 0.4))
    small = max(log_uniform(rng, 0.02, 0.06) * canvas.side, 2.5)
    count = round(log_uniform(rng, 4, 60))
    for x, y in spread_points(rng, count, height, width, rng.uniform(1.2, 3) * small):
        name = str(rng.choice(PARTS))
        radius = small if rng.random() < 0.7 else small * rng.uniform(1.5, 5)
        is_chip = name in ("rectangle", "square") and rng.random() < 0.7
        angle = turn + np.pi / 2 * int(rng.integers(4))
        _part(rng, canvas, name, (x, y), radius, angle, (near(rng, plastic if is_chip else metal, 0.06), metal))
    return canvas


def _part(
    rng: np.random.Generator,
    canvas: Canvas,
    name: str,
    centre: tuple[float, float],
    radius: float,
    angle: float,
    tints: tuple[Image, Image],
) -> None:
    """Draw one electronic part with shadow and printed text, and a chip with pins. tints: body and metal."""
    body, metal = tints
    contours = placed(BROAD_SHAPES[name](rng), centre, radius, angle)
    shape = canvas.stencil(contours)
    if shape is not None and rng.random() < 0.5:
        canvas.shade(shape, (1, 1), 1.5, 0.5)
    if name == "rectangle" and radius > 8 and rng.random() < 0.5:
        pins = placed(_pins(int(rng.integers(3, 9))), centre, radius, angle)
        canvas.outline(pins, metal, 1 + radius / 20)
    rim = metal if rng.random() < 0.3 else None
    material = Material(body, near(rng, body, 0.1), slope=rng.uniform(0, 0.4), rim=rim)
    canvas.add(rng, contours, shape_label(name), material)
    if name == "rectangle" and radius > 12:
        place = (centre[0] - radius / 2, centre[1] + 2)
        canvas.write(str(rng.integers(10, 9999)), place, radius / 50, colour(rng, (0, 0.2), (0.6, 1)))


def _pins(count: int) -> Contours:
    """Return `count` vertical lines across the unit square: the pins of a chip, whose body covers their middle."""
    return tuple(np.array([[x, -0.8], [x, 0.8]], np.float32) for x in np.linspace(-0.85, 0.85, count))
