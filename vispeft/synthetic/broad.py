"""The broad domain: several kinds of scenes with the difficulties of real images.

Each scene has its own random colours, textures and sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from vispeft.synthetic.built import draw_board, draw_grid
from vispeft.synthetic.canvas import Canvas
from vispeft.synthetic.cells import draw_organelles, draw_tissue
from vispeft.synthetic.objects import draw_field, draw_objects
from vispeft.synthetic.textures import smooth_field

SCENES: dict[str, tuple[float, Callable[[np.random.Generator, int, int], Canvas]]] = {
    "objects": (0.3, draw_objects),
    "field": (0.26, draw_field),
    "grid": (0.1, draw_grid),
    "board": (0.12, draw_board),
    "tissue": (0.1, draw_tissue),
    "organelles": (0.12, draw_organelles),
}


def draw_broad(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw one scene of a random kind, chosen by the weights of `SCENES`."""
    weights = np.array([weight for weight, _ in SCENES.values()])
    kind = list(SCENES)[rng.choice(len(SCENES), p=weights / weights.sum())]
    canvas = SCENES[kind][1](rng, height, width)
    if rng.random() < 0.3:
        _warp(rng, canvas)
    return canvas


def _warp(rng: np.random.Generator, canvas: Canvas) -> None:
    """Distort the image and its instances together, in place."""
    height, width = canvas.height, canvas.width
    y, x = np.mgrid[:height, :width].astype(np.float32)
    reach = np.float32(rng.uniform(0.03, 0.2) * canvas.side)
    x += reach * (smooth_field(rng, height, width) - np.float32(0.5))
    y += reach * (smooth_field(rng, height, width) - np.float32(0.5))
    border = cv2.BORDER_REFLECT_101
    canvas.image = np.asarray(cv2.remap(canvas.image, x, y, cv2.INTER_LINEAR, borderMode=border), np.float32)
    canvas.ids = np.asarray(cv2.remap(canvas.ids, x, y, cv2.INTER_NEAREST, borderMode=border), np.int16)
