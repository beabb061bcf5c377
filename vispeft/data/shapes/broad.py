"""The broad domain: kinds of scenes that share with real images what a segmenter must cope with.

Each kind draws its colours, textures and sizes anew.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vispeft.data.shapes.built import draw_board, draw_grid
from vispeft.data.shapes.canvas import Canvas
from vispeft.data.shapes.cells import draw_organelles, draw_tissue
from vispeft.data.shapes.objects import draw_field, draw_objects

SCENES: dict[str, tuple[float, Callable[[np.random.Generator, int, int], Canvas]]] = {
    "objects": (0.36, draw_objects),
    "field": (0.28, draw_field),
    "grid": (0.1, draw_grid),
    "board": (0.1, draw_board),
    "tissue": (0.06, draw_tissue),
    "organelles": (0.1, draw_organelles),
}


def draw_broad(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """One scene of a kind drawn by the weights of `SCENES`."""
    weights = np.array([weight for weight, _ in SCENES.values()])
    kind = list(SCENES)[rng.choice(len(SCENES), p=weights / weights.sum())]
    return SCENES[kind][1](rng, height, width)
