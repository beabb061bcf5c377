"""Target domains: shapes and appearances absent from the broad domain, for measuring the gain of adaptation.

Each domain has the classes of `TARGET_SHAPES`, 3 to 10 instances per image and one appearance:
hatched: line texture; objects and background differ in the direction of the lines, not in brightness
neon: thin glowing outlines around transparent bodies
camouflage: blotches in the colours of the background, with an edge at the outline
inverted: the negative of the background inside the outline
night: coloured bodies on a rough background, at an eighth of the brightness and in one tint
dotted: objects and background are dots that differ in hue, as in colour vision plates
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.synthetic.canvas import Canvas, Stencil
from vispeft.synthetic.contours import TARGET_SHAPES, Contours, placed
from vispeft.synthetic.textures import Image, blend, colour, gaussian_noise, near, smooth_field, texture

TARGET_NAMES = tuple(TARGET_SHAPES)


def _layout(rng: np.random.Generator, canvas: Canvas) -> list[tuple[Contours, Stencil, int]]:
    """Place 3 to 10 shapes with space between most of them. Return contours in pixels, stencil and label of each."""
    side = canvas.side
    placements: list[tuple[Contours, Stencil, int]] = []
    circles: list[tuple[float, float, float]] = []
    count = int(rng.integers(3, 11))
    for _ in range(8 * count):
        radius = rng.uniform(0.11, 0.22) * side
        x, y = rng.uniform(0.06, 0.94, 2) * (canvas.width, canvas.height)
        if any(np.hypot(x - u, y - v) < 0.8 * (radius + r) for u, v, r in circles):
            continue
        label = int(rng.integers(len(TARGET_NAMES)))
        contours = placed(TARGET_SHAPES[TARGET_NAMES[label]](rng), (x, y), radius, rng.uniform(0, 2 * np.pi))
        shape = canvas.stencil(contours)
        if shape is not None:
            placements.append((contours, shape, label))
            circles.append((x, y, radius))
        if len(placements) == count:
            break
    return placements


def _hatch(rng: np.random.Generator, height: int, width: int, angle: float, wavelength: float) -> Image:
    """Return slightly wavy lines [height, width] in 0..1 at an angle, `wavelength` pixels apart."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    bend = np.float32(rng.uniform(0.2, 0.8)) * smooth_field(rng, height, width)
    phase = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) / np.float32(wavelength) + bend
    return np.asarray(np.clip(1.6 * np.sin(2 * np.pi * phase) + 0.5, 0, 1), np.float32)


def _hatched(rng: np.random.Generator, height: int, width: int) -> Canvas:
    paper, ink = colour(rng, (0, 0.25), (0.75, 1)), colour(rng, (0.2, 1), (0.1, 0.4))
    angle, wavelength = rng.uniform(0, np.pi), max(rng.uniform(0.018, 0.03) * min(height, width), 3.0)
    canvas = Canvas(blend(_hatch(rng, height, width, angle, wavelength), ink, paper))
    for _, shape, label in _layout(rng, canvas):
        turned = angle + rng.uniform(0.3, 0.7) * np.pi
        h, w = shape.alpha.shape
        lines = _hatch(rng, h, w, turned, wavelength * rng.uniform(0.8, 1.2))
        canvas.lay(shape, blend(lines, near(rng, ink, 0.03), near(rng, paper, 0.02)))
        canvas.claim(shape, label)
    return canvas


def _neon(rng: np.random.Generator, height: int, width: int) -> Canvas:
    dusk = colour(rng, (0.4, 1), (0.05, 0.25))
    ground = blend(texture(rng, height, width, ("cloud", "fibre")), dusk, colour(rng, (0.4, 1), (0.15, 0.45)))
    canvas = Canvas(ground.copy())
    glow = np.zeros_like(ground)
    lines = Canvas(glow)
    for contours, shape, label in _layout(rng, canvas):
        lines.lay(shape, np.zeros(3, np.float32))
        lines.outline(contours, colour(rng, (0.6, 1), (0.9, 1)), max(canvas.side / 110, 1))
        canvas.claim(shape, label)
    halo = np.asarray(cv2.GaussianBlur(glow, (0, 0), canvas.side / 70), np.float32)
    canvas.image = np.asarray(ground + glow + np.float32(1.2) * halo, np.float32)
    return canvas


def _blotches(rng: np.random.Generator, height: int, width: int, tints: NDArray[np.float32]) -> Image:
    """Return hard-edged patches [height, width, 3] of a few colours."""
    field = texture(rng, height, width, ("cloud", "spots"))
    levels = np.clip((field * len(tints)).astype(np.int32), 0, len(tints) - 1)
    return np.asarray(tints[levels], np.float32)


def _camouflage(rng: np.random.Generator, height: int, width: int) -> Canvas:
    base = colour(rng, (0.2, 0.6), (0.3, 0.7))
    tints = np.stack([near(rng, base, 0.16) for _ in range(4)])
    canvas = Canvas(_blotches(rng, height, width, tints).copy())
    for contours, shape, label in _layout(rng, canvas):
        canvas.shade(shape, (1, 2), canvas.side / 110, 0.35)
        h, w = shape.alpha.shape
        canvas.lay(shape, _blotches(rng, h, w, rng.permutation(tints)))
        canvas.outline(contours, base * np.float32(0.75), 1)
        canvas.claim(shape, label)
    return canvas


def _dotted(rng: np.random.Generator, height: int, width: int) -> Canvas:
    paper = colour(rng, (0, 0.1), (0.88, 1))
    canvas = Canvas(np.broadcast_to(paper, (height, width, 3)).astype(np.float32).copy())
    for _, shape, label in _layout(rng, canvas):
        canvas.claim(shape, label)
    hue_ground, hue_object = colour(rng, (0.5, 0.9), (0.5, 0.8)), colour(rng, (0.5, 0.9), (0.5, 0.8))
    while np.abs(hue_ground - hue_object).sum() < 0.5:
        hue_object = colour(rng, (0.5, 0.9), (0.5, 0.8))
    step = max(canvas.side / 46, 3.0)
    ys, xs = np.meshgrid(np.arange(0, height + step, step), np.arange(0, width + step, step), indexing="ij")
    places = np.stack([xs, ys], axis=-1).reshape(-1, 2) + rng.uniform(-0.3, 0.3, (xs.size, 2)) * step
    rows = np.clip(places[:, 1].astype(int), 0, height - 1)
    columns = np.clip(places[:, 0].astype(int), 0, width - 1)
    hues = np.where(canvas.ids[rows, columns, None] > 0, hue_object, hue_ground)
    tints = np.clip(hues + rng.normal(0, 0.07, (len(places), 1)) + rng.normal(0, 0.03, (len(places), 3)), 0, 1).tolist()
    radii = (rng.uniform(0.28, 0.55, len(places)) * step * 16).astype(int).tolist()
    for centre, radius, tint in zip((places * 16).astype(int).tolist(), radii, tints, strict=True):
        cv2.circle(canvas.image, centre, radius, tint, -1, cv2.LINE_AA, 4)
    return canvas


def _inverted(rng: np.random.Generator, height: int, width: int) -> Canvas:
    field = texture(rng, height, width, ("cloud",))
    canvas = Canvas(blend(field, colour(rng, (0.3, 1), (0, 0.3)), colour(rng, (0.1, 0.6), (0.7, 1))).copy())
    negative = 1 - canvas.image
    for _, shape, label in _layout(rng, canvas):
        canvas.lay(shape, negative[shape.window])
        canvas.claim(shape, label)
    return canvas


def _night(rng: np.random.Generator, height: int, width: int) -> Canvas:
    dark = colour(rng, (0, 0.6), (0.1, 0.7))
    ground = blend(texture(rng, height, width), dark, near(rng, dark, 0.2))
    canvas = Canvas(ground.copy())
    for contours, shape, label in _layout(rng, canvas):
        body = colour(rng, (0, 1), (0.1, 1))
        while np.abs(body - dark).sum() < 0.6:
            body = colour(rng, (0, 1), (0.1, 1))
        h, w = shape.alpha.shape
        canvas.lay(shape, blend(texture(rng, h, w), body, near(rng, body, 0.15)))
        canvas.outline(contours, body * np.float32(0.8), 1)
        canvas.claim(shape, label)
    tint = np.array([0.55, 1.0, 0.75], np.float32)
    canvas.image = np.asarray(np.float32(0.025) + np.float32(0.12) * tint * canvas.image, np.float32)
    return canvas


TARGETS: dict[str, Callable[[np.random.Generator, int, int], Canvas]] = {
    "hatched": _hatched,
    "neon": _neon,
    "camouflage": _camouflage,
    "dotted": _dotted,
    "inverted": _inverted,
    "night": _night,
}


def scanned(rng: np.random.Generator, image: Image) -> NDArray[np.uint8]:
    """Return the 8-bit image of a target scene, with slight blur and noise only: more would hide the appearance."""
    height, width = image.shape[:2]
    soft = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7)), np.float32)
    noisy = soft + np.float32(rng.uniform(0.005, 0.03)) * gaussian_noise(rng, height, width)
    return np.asarray(np.clip(noisy * 255, 0, 255), np.uint8)
