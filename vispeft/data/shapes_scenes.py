"""The broad domain: kinds of scenes that share with real images what a segmenter must cope with.

Loose objects (things on a table), fields (nuclei, grains), grids (windows), boards (electronics), tissue (cells with
membranes) and organelles. Each kind draws its colours, textures and sizes anew.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.data.shapes_canvas import Canvas, Material
from vispeft.data.shapes_contours import BROAD_SHAPES, Contours, placed
from vispeft.data.shapes_textures import NATURAL, REGULAR, Image, blend, colour, near, smooth_field, texture

SHAPE_NAMES = tuple(BROAD_SHAPES)
ROUND = ("disk", "ellipse", "blob", "capsule")
DARK: Image = np.zeros(3, np.float32)


def _uneven(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between low and high whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _ground(rng: np.random.Generator, height: int, width: int, base: Image, spread: float) -> Image:
    """A textured background [height, width, 3] about a base colour."""
    families = NATURAL if rng.random() < 0.8 else REGULAR
    image = blend(texture(rng, height, width, families), near(rng, base, spread), near(rng, base, spread))
    if rng.random() < 0.4:
        image += (rng.uniform(0, 0.5) * (texture(rng, height, width) - 0.5) * base.mean())[:, :, None]
    if rng.random() < 0.5:
        image *= 1 + rng.uniform(0.1, 0.8) * (smooth_field(rng, height, width)[:, :, None] - 0.5)
    return np.ascontiguousarray(image, np.float32)


def _clutter(rng: np.random.Generator, canvas: Canvas, amount: int) -> None:
    """Lines, letters and curves that are nobody's instance."""
    side = canvas.side
    for _ in range(int(rng.integers(amount + 1))):
        tint = [float(v) for v in colour(rng)]
        weight = int(rng.integers(1, 3))
        points = rng.uniform(0, side, (int(rng.integers(2, 6)), 2))
        match int(rng.integers(3)):
            case 0:
                cv2.polylines(canvas.image, [(points * 16).astype(np.int32)], False, tint, weight, cv2.LINE_AA, 4)
            case 1:
                letters = "".join(chr(c) for c in rng.integers(48, 123, rng.integers(2, 9)))
                canvas.write(letters, (points[0, 0], points[0, 1]), side / 192 * rng.uniform(0.25, 0.9), colour(rng))
            case _:
                axes = (int(rng.uniform(0.1, 0.6) * side), int(rng.uniform(0.1, 0.6) * side))
                centre = (int(points[0, 0]), int(points[0, 1]))
                turn, start = rng.uniform(0, 360), rng.uniform(0, 360)
                stop = start + rng.uniform(20, 160)
                cv2.ellipse(canvas.image, centre, axes, turn, start, stop, tint, weight, cv2.LINE_AA)


def _label(name: str) -> int:
    return SHAPE_NAMES.index(name)


def _spread_points(rng: np.random.Generator, count: int, height: int, width: int, gap: float) -> NDArray[np.float64]:
    """Up to `count` points (x, y), uniform, no two closer than `gap` pixels."""
    candidates = rng.uniform(0, 1, (3 * count, 2)) * (width, height)
    apart = ((candidates[:, None] - candidates[None]) ** 2).sum(axis=2) >= gap * gap
    kept: list[int] = []
    for i in range(len(candidates)):
        if len(kept) < count and (not kept or bool(apart[i, kept].all())):
            kept.append(i)
    return candidates[kept]


def _object_material(rng: np.random.Generator, base: Image) -> Material:
    plain = rng.random() < 0.15
    families = () if plain else (NATURAL if rng.random() < 0.8 else REGULAR)
    spread = rng.uniform(0.02, 0.25)
    is_round = rng.random() < 0.6
    return Material(
        low=near(rng, base, spread),
        high=near(rng, base, spread),
        families=families,
        dome=rng.uniform(0, 0.5) if is_round else 0.0,
        slope=rng.uniform(0, 0.5) if rng.random() < 0.6 else 0.0,
        gloss=rng.uniform(0.1, 0.7) if is_round and rng.random() < 0.5 else 0.0,
        rim=near(rng, base * 0.5, 0.1) if rng.random() < 0.2 else None,
        rim_width=rng.uniform(1, 3),
    )


def _objects(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """A few to a dozen objects, large or small, with shade and shadow, on a textured ground."""
    canvas = Canvas(_ground(rng, height, width, colour(rng, (0, 0.7), (0.15, 1)), rng.uniform(0.02, 0.2)))
    if rng.random() < 0.4:
        _clutter(rng, canvas, 6)
    side = canvas.side
    count = round(_uneven(rng, 1, 16))
    gap = _uneven(rng, 0.04, 0.5) * side / np.sqrt(count)
    family = SHAPE_NAMES if rng.random() < 0.6 else tuple(rng.choice(SHAPE_NAMES, 2))
    tints = [colour(rng) for _ in range(int(rng.integers(1, 6)))]
    limit = min(0.35, 0.6 / np.sqrt(count))
    has_shadows = rng.random() < 0.5
    sun = rng.uniform(-0.03, 0.03, 2) * side
    for x, y in _spread_points(rng, count, height, width, gap):
        name = str(rng.choice(family))
        radius = (
            _uneven(rng, 0.04, max(limit, 0.05)) * side if rng.random() < 0.5 else rng.uniform(0.6, 1) * limit * side
        )
        contours = placed(BROAD_SHAPES[name](rng), (x, y), radius, rng.uniform(0, 2 * np.pi))
        if has_shadows and (shape := canvas.stencil(contours)) is not None:
            canvas.shade(shape, (int(sun[0]), int(sun[1])), max(0.02 * side, 1), rng.uniform(0.2, 0.8))
        canvas.add(rng, contours, _label(name), _object_material(rng, near(rng, tints[rng.integers(len(tints))], 0.05)))
    return canvas


def _field_colours(rng: np.random.Generator) -> tuple[Image, Image]:
    """Ground and grain colours: fluorescence, stain, grey, or free."""
    match int(rng.integers(6)):
        case 0 | 1:
            tint = colour(rng, (0, 1), (1, 1)) if rng.random() < 0.5 else np.ones(3, np.float32)
            return tint * np.float32(rng.uniform(0, 0.12)), tint * np.float32(_uneven(rng, 0.15, 1))
        case 2:
            ground = np.array([rng.uniform(0.75, 0.97), rng.uniform(0.5, 0.85), rng.uniform(0.7, 0.95)], np.float32)
            return ground, ground * np.array(
                [rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.7), rng.uniform(0.6, 0.95)], np.float32
            )
        case 3:
            ground = np.full(3, rng.uniform(0.15, 0.95), np.float32)
            return ground, near(rng, ground * np.float32(rng.uniform(0.4, 0.9)), 0.02)
        case _:
            return colour(rng, (0, 0.8)), colour(rng, (0, 1))


def _field(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Many small grains of one kind, apart or touching: nuclei, pebbles, seeds."""
    ground, grain = _field_colours(rng)
    canvas = Canvas(_ground(rng, height, width, ground, rng.uniform(0.005, 0.1)))
    side = canvas.side
    count = round(_uneven(rng, 4, 100))
    radius = min(side * np.sqrt(rng.uniform(0.04, 0.6) / (count * np.pi)), 0.15 * side)
    radius = max(radius, 0.02 * side, 2.5)
    family = ROUND if rng.random() < 0.75 else SHAPE_NAMES
    names = tuple(rng.choice(family, int(rng.integers(1, 3))))
    spread, jitter = rng.uniform(0.01, 0.12), rng.uniform(0.05, 0.45)
    if rng.random() < 0.35:
        _veils(rng, canvas, near(rng, (ground + grain) / 2, 0.05), radius)
    shared = Material(
        low=grain,
        high=near(rng, grain, rng.uniform(0.02, 0.2)),
        dome=rng.uniform(-0.4, 0.5) if rng.random() < 0.6 else 0.0,
        rim=near(rng, grain * np.float32(rng.uniform(0.3, 1.5)), 0.05) if rng.random() < 0.3 else None,
        rim_width=1 + side / 400,
        opacity=rng.uniform(0.5, 1),
    )
    for x, y in _spread_points(rng, count, height, width, radius * rng.uniform(0.7, 2)):
        name = str(rng.choice(names))
        shift = np.float32(rng.normal(0, spread))
        material = Material(
            shared.low + shift,
            shared.high + shift,
            dome=shared.dome,
            rim=shared.rim,
            rim_width=shared.rim_width,
            opacity=shared.opacity,
        )
        size = radius * np.exp(rng.normal(0, jitter))
        canvas.add(rng, placed(BROAD_SHAPES[name](rng), (x, y), size, rng.uniform(0, 6.3)), _label(name), material)
    return canvas


def _veils(rng: np.random.Generator, canvas: Canvas, tint: Image, radius: float) -> None:
    """Large translucent bodies (cytoplasm) that are not instances."""
    for _ in range(int(rng.integers(2, 12))):
        size = min(radius * rng.uniform(2.5, 6), 0.4 * canvas.side)
        centre = (rng.uniform(0, canvas.width), rng.uniform(0, canvas.height))
        rim = tint * np.float32(0.8) if rng.random() < 0.5 else None
        veil = Material(tint, near(rng, tint, 0.08), rim=rim, opacity=rng.uniform(0.2, 0.7))
        canvas.add(rng, placed(BROAD_SHAPES["blob"](rng), centre, size, rng.uniform(0, 6.3)), None, veil)


def _bent(rng: np.random.Generator, height: int, width: int, strength: float) -> NDArray[np.float32]:
    """A random homography [3, 3] from the unit square to about the whole picture."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    moved = (corners + rng.uniform(-strength, strength, (4, 2))) * (width, height)
    return np.asarray(cv2.getPerspectiveTransform(corners, moved.astype(np.float32)), np.float32)


def _rect(u0: float, v0: float, u1: float, v1: float) -> Contours:
    return (np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]], np.float32),)


def _seen(contours: Contours, view: NDArray[np.float32]) -> Contours:
    """Contours of the unit square through a homography, in pixels."""
    return tuple(np.asarray(cv2.perspectiveTransform(c[None], view)[0], np.float32) for c in contours)


def _grid(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Rows of windows on a wall, seen at an angle; frames and bars are part of the window."""
    wall = colour(rng, (0, 0.5), (0.2, 1))
    canvas = Canvas(_ground(rng, height, width, colour(rng, (0, 0.6), (0.3, 1)), 0.1))
    view = _bent(rng, height, width, rng.uniform(0, 0.25))
    top = rng.uniform(-0.3, 0.3)
    canvas.add(
        rng,
        _seen(_rect(-0.1, top, 1.1, 1.3), view),
        None,
        Material(wall, near(rng, wall, 0.1), NATURAL + REGULAR, slope=0.15),
    )
    rows, columns = int(rng.integers(1, 7)), int(rng.integers(2, 8))
    fill_u, fill_v = rng.uniform(0.3, 0.85, 2)
    glass, frame = colour(rng, (0, 0.6), (0.05, 0.9)), near(rng, wall, 0.25)
    skip = rng.uniform(0, 0.4)
    bars = (int(rng.integers(3)), int(rng.integers(3)))
    top = max(top, 0.0)
    for row in range(rows):
        v = top + (row + 0.5) / rows * (1 - top)
        if rng.random() < 0.3:
            ledge = Material(near(rng, wall, 0.15), wall, ())
            canvas.add(rng, _seen(_rect(-0.1, v + 0.46 / rows, 1.1, v + 0.5 / rows), view), None, ledge)
        for column in range(columns):
            if rng.random() < skip:
                continue
            u, half_u, half_v = (column + 0.5) / columns, 0.5 * fill_u / columns, 0.5 * fill_v * (1 - top) / rows
            pane = near(rng, glass, 0.08) if rng.random() < 0.85 else colour(rng)
            material = Material(
                pane, near(rng, pane, 0.2), slope=rng.uniform(0, 0.4), rim=frame, rim_width=1 + canvas.side / 130
            )
            canvas.add(
                rng, _seen(_rect(u - half_u, v - half_v, u + half_u, v + half_v), view), _label("rectangle"), material
            )
            _window_bars(canvas, view, (u - half_u, v - half_v, u + half_u, v + half_v), bars, frame)
    if rng.random() < 0.4:
        _clutter(rng, canvas, 4)
    return canvas


def _window_bars(
    canvas: Canvas,
    view: NDArray[np.float32],
    box: tuple[float, float, float, float],
    bars: tuple[int, int],
    tint: Image,
) -> None:
    """Upright and level bars across a window."""
    u0, v0, u1, v1 = box
    lines = [
        ((u0 + (u1 - u0) * (i + 1) / (bars[0] + 1), v0), (u0 + (u1 - u0) * (i + 1) / (bars[0] + 1), v1))
        for i in range(bars[0])
    ]
    lines += [
        ((u0, v0 + (v1 - v0) * (i + 1) / (bars[1] + 1)), (u1, v0 + (v1 - v0) * (i + 1) / (bars[1] + 1)))
        for i in range(bars[1])
    ]
    for line in lines:
        canvas.outline(_seen((np.array(line, np.float32),), view), tint, 1)


def _board(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Chips, pads and capacitors in line with the axes on a board with traces and print."""
    base = colour(rng, (0.4, 1), (0.15, 0.6)) if rng.random() < 0.7 else colour(rng)
    canvas = Canvas(_ground(rng, height, width, base, 0.05))
    side = canvas.side
    turn = rng.uniform(-0.2, 0.2) if rng.random() < 0.4 else 0.0
    trace = [float(v) for v in near(rng, base * np.float32(rng.uniform(0.6, 1.5)), 0.05)]
    for _ in range(int(rng.integers(0, 30))):
        start = rng.uniform(0, 1, 2) * (width, height)
        steps = np.cumsum(rng.choice([-1, 0, 1], (3, 2)) * rng.uniform(0.02, 0.3, (3, 1)) * side, axis=0)
        path = (np.concatenate([start[None], start + steps]) * 16).astype(np.int32)
        cv2.polylines(canvas.image, [path], False, trace, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
    _clutter(rng, canvas, 3)
    metal, plastic = colour(rng, (0, 0.5), (0.6, 1)), colour(rng, (0, 0.4), (0.05, 0.4))
    count = round(_uneven(rng, 4, 50))
    small = max(_uneven(rng, 0.02, 0.06) * side, 2.5)
    for x, y in _spread_points(rng, count, height, width, rng.uniform(1.2, 3) * small):
        name = str(rng.choice(("rectangle", "square", "disk", "ring", "capsule", "rectangle", "cross", "hexagon")))
        radius = small * (1 if rng.random() < 0.7 else rng.uniform(1.5, 5))
        tint = near(rng, plastic if name in ("rectangle", "square") and rng.random() < 0.7 else metal, 0.06)
        contours = placed(BROAD_SHAPES[name](rng), (x, y), radius, turn + np.pi / 2 * int(rng.integers(4)))
        if rng.random() < 0.5 and (shape := canvas.stencil(contours)) is not None:
            canvas.shade(shape, (1, 1), 1.5, 0.5)
        rim = metal if rng.random() < 0.3 else None
        canvas.add(
            rng, contours, _label(name), Material(tint, near(rng, tint, 0.1), slope=rng.uniform(0, 0.4), rim=rim)
        )
        if name == "rectangle" and radius > 12:
            canvas.write(
                str(rng.integers(10, 9999)), (x - radius / 2, y + 2), radius / 50, colour(rng, (0, 0.2), (0.6, 1))
            )
    return canvas


def _regions(rng: np.random.Generator, height: int, width: int, count: int) -> NDArray[np.uint8]:
    """A partition of the picture into about `count` wobbly cells, numbered from 1. Returns [height, width]."""
    seeds = np.full((height, width), 255, np.uint8)
    for x, y in _spread_points(rng, count, height, width, 0.6 * np.sqrt(height * width / count)):
        seeds[min(int(y), height - 1), min(int(x), width - 1)] = 0
    _, owner = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    wobble = rng.uniform(0.05, 0.4) * np.sqrt(height * width / count)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x += np.float32(wobble) * (texture(rng, height, width, ("cloud",)) - 0.5)
    y += np.float32(wobble) * (texture(rng, height, width, ("cloud",)) - 0.5)
    moved = cv2.remap(owner.astype(np.uint8), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(moved, np.uint8)


def _partition(rng: np.random.Generator, height: int, width: int, count: int) -> tuple[Canvas, NDArray[np.uint8]]:
    """Cells separated by membranes, nobody's instance yet. Returns the canvas and each pixel's cell (0: membrane)."""
    cells = _regions(rng, height, width, count)
    thickness = 2 * int(rng.integers(1, 3)) + 1
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness, thickness))
    wall = cv2.dilate(cells, element) != cv2.erode(cells, element)
    is_grey = rng.random() < 0.6
    tint = colour(rng, (0, 0 if is_grey else 0.7), (0.4, 0.9))
    spread = rng.uniform(0.0, 0.12)
    tints = np.stack([near(rng, tint, spread) for _ in range(256)])
    image = tints[cells] + np.float32(rng.uniform(0.05, 0.35)) * (texture(rng, height, width)[:, :, None] - 0.5)
    membrane = tint * np.float32(rng.uniform(0.1, 0.7) if rng.random() < 0.8 else rng.uniform(1.2, 1.8))
    soft = cv2.GaussianBlur(wall.astype(np.float32), (0, 0), 0.8)[:, :, None]
    image += soft * (membrane - image)
    return Canvas(np.ascontiguousarray(image, np.float32)), np.where(wall, 0, cells).astype(np.uint8)


def _tissue(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Cells that fill the picture; most of them are instances."""
    canvas, cells = _partition(rng, height, width, round(_uneven(rng, 6, 60)))
    number, areas, _ = _pieces(cells)
    order = np.zeros(len(areas), np.int16)
    keep = (areas >= 20) & (rng.random(len(areas)) < rng.uniform(0.7, 1.2))
    keep[0] = False
    order[keep] = np.arange(1, int(keep.sum()) + 1)
    canvas.ids = order[number]
    canvas.labels = [_label("blob")] * int(keep.sum())
    canvas.full_areas = [int(a) for a in areas[keep]]
    if not keep.all() and rng.random() < 0.5:
        canvas.image[canvas.ids == 0] *= np.float32(rng.uniform(0.5, 0.8))
    return canvas


def _pieces(cells: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Connected pieces of the open cells: number of each pixel (0: wall), areas by number, count."""
    count, number, stats, _ = cv2.connectedComponentsWithStats((cells > 0).astype(np.uint8), connectivity=4)
    return np.asarray(number, np.int32), np.asarray(stats[:, cv2.CC_STAT_AREA], np.int64), count


def _organelles(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Textured bodies inside cells whose walls look much like the bodies' own outlines."""
    canvas, _ = _partition(rng, height, width, round(_uneven(rng, 4, 30)))
    side = canvas.side
    ground = np.asarray(canvas.image.mean(axis=(0, 1)), np.float32)
    body = ground * np.float32(rng.uniform(0.5, 0.95)) if rng.random() < 0.8 else near(rng, ground, 0.2)
    rim = body * np.float32(rng.uniform(0.3, 0.8))
    radius = _uneven(rng, 0.03, 0.13) * side
    count = round(min(_uneven(rng, 2, 30), 0.2 * side**2 / radius**2))
    for x, y in _spread_points(rng, count, height, width, 1.8 * radius):
        name = str(rng.choice(("ellipse", "capsule", "blob", "disk")))
        tint = near(rng, body, 0.03)
        material = Material(
            tint, near(rng, tint, 0.12), ("stripes", "grain", "fibre", "spots"), rim=rim, rim_width=rng.uniform(1, 3)
        )
        size = max(radius * np.exp(rng.normal(0, 0.25)), 2.5)
        canvas.add(rng, placed(BROAD_SHAPES[name](rng), (x, y), size, rng.uniform(0, 6.3)), _label(name), material)
    return canvas


SCENES: dict[str, tuple[float, Callable[[np.random.Generator, int, int], Canvas]]] = {
    "objects": (0.36, _objects),
    "field": (0.28, _field),
    "grid": (0.1, _grid),
    "board": (0.1, _board),
    "tissue": (0.06, _tissue),
    "organelles": (0.1, _organelles),
}


def draw_broad(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """One scene of a kind drawn by the weights of `SCENES`."""
    weights = np.array([weight for weight, _ in SCENES.values()])
    kind = list(SCENES)[rng.choice(len(SCENES), p=weights / weights.sum())]
    return SCENES[kind][1](rng, height, width)
